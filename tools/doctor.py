"""Check this machine and a config for what would stop or spoil a run, and say how to fix it.

One line per check: 'ok', 'note' for what is worth knowing but not wrong, 'FAIL' with the command that fixes it. The
exit code is 1 if anything failed, and 2 if there is no such config. Nothing is changed or downloaded.

Example:
    python tools/doctor.py
    COCO_ROOT=/path/to/coco python tools/doctor.py configs/maskrcnn_cvt13_fpn_coco.py
"""

from __future__ import annotations

import argparse
import copy
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import doctor_machine as machine
from doctor_machine import FAIL, GIB, NOTE, OK, PACKAGES, PIP, PYTHON, ROOT, Result, in_a_line

if TYPE_CHECKING:
    from mmengine.config import Config

    from cvt_dense.analysis.memory import MemoryEstimate
    from cvt_dense.errors import UserError

COLOURS = {OK: '\x1b[32m', NOTE: '\x1b[33m', FAIL: '\x1b[31m'}
#: What Python and its libraries take beside a training step on a CPU (0.8 GiB measured), CUDA's context on a GPU.
OVERHEAD = int(0.8 * GIB)
#: The part of the free memory that an estimate may take for the step to fit: the least that one was of a measured step.
SAFE = 0.6


@dataclass(frozen=True)
class Check:
    """A check: its name, and the function that yields what it finds."""

    name: str
    run: Callable[[], Iterator[Result]]


def results_of(check: Check) -> list[Result]:
    """What a check finds; an unexpected error is a failure too, and the other checks continue."""
    try:
        with redirect_stdout(io.StringIO()):  # packages print things as they are imported
            results = list(check.run())
    except ImportError as error:
        results = [Result(FAIL, f'cannot be checked: {in_a_line(error)}', 'see the lines above')]
    except Exception as error:  # a machine may be broken in any way
        results = [Result(FAIL, f'unexpected {in_a_line(error)}', f'{PIP} check, and fix what it names')]
    return results


@dataclass(frozen=True)
class Given:
    """What the user names: a config, and what overrides it.

    Attributes:
        config: The file.
        overrides: ``KEY=VALUE`` as given to ``--cfg-options``.
    """

    config: str
    overrides: tuple[str, ...] = ()

    def command(self, tool: str, *overrides: str, flags: str = '') -> str:
        """The command that runs a tool on the config as it is looked at, with further overrides."""
        every = [*map(shlex.quote, self.overrides), *overrides]
        parts = [PYTHON, f'tools/{tool}.py', self.config, flags, *(['--cfg-options', *every] if every else [])]
        return ' '.join(part for part in parts if part)


def report(checks: list[Check]) -> int:
    """Run checks and print a line for each result; returns the exit code."""
    coloured = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
    failed = 0
    for check in checks:
        for result in results_of(check):
            status = f'{result.status:<5}'
            if coloured:
                status = f'{COLOURS[result.status]}{status}\x1b[0m'
            fix = f'; to fix it: {result.fix}' if result.fix else ''
            print(f'{status} {check.name:<15} {result.text}{fix}', flush=True)
            failed += result.status == FAIL
    print(f'{failed} failed' if failed else 'nothing failed')
    return int(failed > 0)


# ----------------------------------------------------------------------------------------------------
# The config
# ----------------------------------------------------------------------------------------------------


def how_to_fix(error: UserError, given: Given, split: str = 'train') -> str:
    """What cures an error: its own advice, of which options are made a command."""
    options = error.cure.removeprefix('--cfg-options ')
    if options == error.cure:
        return error.cure
    return given.command('test', options, flags='CHECKPOINT') if split == 'test' else given.command('train', options)


def check_data(cfg: Config, given: Given, split: str, loaded: dict[str, list[Any]] | None = None) -> Iterator[Result]:
    """Whether the data of a split are there and what a sample of them holds can be trained on.

    Args:
        cfg: What is looked at.
        given: Where it is from.
        split: ``train``, ``val`` or ``test``.
        loaded: The data sets that were loaded go there, for the checks that come after.
    """
    from cvt_dense.datasets.check import build_dataset, inspect_dataset
    from cvt_dense.datasets.paths import check_data as look_for_data
    from cvt_dense.datasets.paths import datasets_in
    from cvt_dense.datasets.settings import DataSettings
    from cvt_dense.errors import UserError

    try:
        look_for_data(cfg, (split,))
    except UserError as error:
        yield Result(FAIL, error.fault, how_to_fix(error, given, split))
        return
    loader, evaluators = cfg.get(f'{split}_dataloader'), cfg.get(f'{split}_evaluator')
    for dataset in datasets_in(loader.dataset if loader else None):
        try:
            built = build_dataset(dataset, cfg.default_scope)
            yield Result(OK, inspect_dataset(built, evaluators, DataSettings(cfg, split)))
            if loaded is not None:
                loaded.setdefault(split, []).append(built)
        except UserError as error:
            yield Result(FAIL, error.fault, how_to_fix(error, given, split))


def check_classes(cfg: Config, given: Given) -> Iterator[Result]:
    """Whether the heads predict as many classes as the training data have."""
    from cvt_dense.datasets.check import build_dataset
    from cvt_dense.datasets.heads import heads_with_classes, options_for, what_is, wrong_heads
    from cvt_dense.datasets.paths import datasets_in

    heads = heads_with_classes(cfg)
    for dataset in datasets_in(cfg.train_dataloader.dataset):
        metainfo = build_dataset(dataset, cfg.default_scope).metainfo
        classes = metainfo.get('classes') or ()
        if isinstance(classes, str):  # which is what is said of the data
            continue
        wrong = wrong_heads(cfg, metainfo)
        if wrong:
            message, command = what_is(wrong), given.command('train', options_for(wrong))
            yield Result(FAIL, f'the data have {len(classes)}, and the config {message}', command)
        else:
            yield Result(OK, f'{len(classes)} in the data and in {len(heads)} heads')


def check_checkpoint(cfg: Config, given: Given) -> Iterator[Result]:
    """Whether the backbone's pre-trained weights fit it or, if they are not here, can be downloaded."""
    import torch
    from mmengine.registry import MODELS

    from cvt_dense.backbones.weights import read_init_cfg
    from cvt_dense.checkpoints.load import read_fitting
    from cvt_dense.checkpoints.sources import check_reachable, find_here
    from cvt_dense.errors import CheckpointError
    from cvt_dense.registry import type_name

    def ways(*before: str) -> str:
        command = given.command('train', *before, 'model.backbone.init_cfg.checkpoint=PATH')
        return f'{command} of one that fits, or with model.backbone.init_cfg=None for none'

    try:
        pretrained = read_init_cfg(cfg.model.backbone.get('init_cfg')).pretrained
    except CheckpointError as error:
        anew = ('model.backbone.init_cfg._delete_=True', 'model.backbone.init_cfg.type=Pretrained')
        yield Result(FAIL, str(error), ways(*anew))
        return
    if not pretrained:
        yield Result(NOTE, 'none: the backbone starts from random weights')
    for source in pretrained:
        checkpoint = source.checkpoint
        try:
            path = find_here(checkpoint)
            if path is None:
                yield Result(OK, f'{checkpoint} is not here yet, and {check_reachable(checkpoint)} has it')
            elif type_name(cfg.model.backbone) in ('CvT', 'CMT'):
                with torch.device('meta'):
                    backbone = MODELS.build(dict(cfg.model.backbone, init_cfg=None))
                _, found = read_fitting(backbone, str(path), source.prefix)
                yield Result(OK, f'{checkpoint} is here and fits: {found.loaded} tensors, {found.format} format')
            else:
                yield Result(OK, f'{checkpoint} is here')
        except CheckpointError as error:
            yield Result(FAIL, str(error), ways())


def check_memory(cfg: Config, given: Given) -> Iterator[Result]:
    """Whether the memory looks enough for a training step.

    Measured steps took more than the estimate (see :mod:`cvt_dense.analysis.memory`), so this may warn and never fails.
    """
    try:
        yield compare_memory(cfg, given)
    except Exception as error:  # on tensors without values, a model's code can raise anything
        yield Result(NOTE, f'not estimated: {in_a_line(error)}')


def compare_memory(cfg: Config, given: Given) -> Result:
    """Compare the estimate with what is free; if it looks too much, name options that need less."""
    estimate = estimate_for(cfg)
    if estimate is None:
        return Result(NOTE, 'not estimated: the config does not say how large its images are')
    available, kind = machine.available_memory()
    needed = estimate.total + OVERHEAD
    parts = (
        f'parameters {estimate.parameters / GIB:.2f}, optimizer {estimate.optimizer / GIB:.2f}, '
        f'activations and gradients {estimate.passes / GIB:.2f}, libraries {OVERHEAD / GIB:.2f}'
    )
    others = f' and {len(estimate.left_out) - 1} more' if len(estimate.left_out) > 1 else ''
    least = f', without what {estimate.left_out[0]}{others} takes' if estimate.left_out else ''
    text = (
        f'a training step takes an estimated {needed / GIB:.1f} GiB of the {available / GIB:.1f} GiB of {kind} that '
        f'are free ({estimate.batch_size} images of {estimate.size[0]}x{estimate.size[1]}; {parts}{least}); an '
        'estimate only, which was 0.6 to 0.9 of what measured steps took'
    )
    if needed <= SAFE * available:
        return Result(NOTE if estimate.left_out else OK, text)
    options, is_enough = options_for_memory(cfg, int(SAFE * available))
    aside = '' if is_enough else ', with smaller images or a smaller backbone'
    return Result(NOTE, f'{text}; if memory runs out: {given.command("train", *options, flags="--amp")}{aside}')


def estimate_for(cfg: Config) -> MemoryEstimate | None:
    """The estimated memory of a training step; None if the config does not say how large its images are."""
    import torch

    from cvt_dense.analysis.memory import estimate_memory, image_size
    from cvt_dense.engine.model import build_model

    if image_size(cfg) is None:
        return None
    with torch.device('meta'):
        model = build_model(cfg)
    return estimate_memory(cfg, model)


def options_for_memory(cfg: Config, available: int) -> tuple[list[str], bool]:
    """Overrides with which a step takes, beside ``--amp``, less by the same estimate, and if it is what there is."""
    cfg = copy.deepcopy(cfg)
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'  # what --amp sets
    cfg.model.backbone.with_cp = True
    batch_size = cfg.train_dataloader.batch_size
    while (too_much := estimate_for(cfg).total + OVERHEAD > available) and batch_size > 1:
        batch_size = cfg.train_dataloader.batch_size = batch_size // 2
    return ['model.backbone.with_cp=True', f'train_dataloader.batch_size={batch_size}'], not too_much


def check_learning_rate(cfg: Config, given: Given) -> Iterator[Result]:
    """Whether the learning rate is meant for the batch of one process."""
    scaling, optimizer = cfg.get('auto_scale_lr') or {}, cfg.optim_wrapper.get('optimizer') or {}
    base, batch_size, rate = scaling.get('base_batch_size'), cfg.train_dataloader.batch_size, optimizer.get('lr')
    if base is None:
        text = f'{rate}; the config does not say for which size of batch (auto_scale_lr.base_batch_size)'
        yield Result(NOTE, text)
    elif batch_size == base:
        yield Result(OK, f'{rate} is for {base} images a batch, as it is on one GPU or CPU')
    elif scaling.get('enable'):
        yield Result(OK, f'{rate} for {base} images a batch, scaled to what it is: {batch_size} on one GPU or CPU')
    else:
        processes = f'start {base // batch_size} processes, or ' if base % batch_size == 0 else ''
        yield Result(
            NOTE,
            f'{rate} is for {base} images a batch, and it is {batch_size} on one GPU or CPU: {processes}'
            f'let the rate be scaled: {given.command("train", flags="--auto-scale-lr")}',
        )


def check_schedule(cfg: Config, loaded: dict[str, list[Any]]) -> Iterator[Result]:
    """Whether a run is as long as its schedule."""
    from cvt_dense.datasets.paths import datasets_in
    from cvt_dense.engine.faults import schedule_faults

    datasets, dataset = loaded.get('train', []), cfg.train_dataloader.dataset
    is_plain = len(datasets) == 1 and next(iter(datasets_in(dataset))) is dataset
    epoch = -(-len(datasets[0]) // cfg.train_dataloader.batch_size) if is_plain else None
    faults = schedule_faults(cfg, epoch)
    yield from (Result(NOTE, fault) for fault in faults)
    if not faults:
        loop = cfg.train_cfg
        length = f'{loop.get("max_iters")} iterations'
        if loop.get('max_epochs'):
            length = f'{loop.max_epochs} epochs{f" of {epoch} iterations" if epoch else ""}'
        yield Result(OK, f'{length}; warm-up, decay and evaluation are within them')


def check_objects(cfg: Config, loaded: dict[str, list[Any]]) -> Iterator[Result]:
    """Whether a detector's anchors and limits fit the objects of its training data."""
    from cvt_dense.engine.objects import lines_of_objects, objects_of

    for dataset in loaded.get('train', []):
        objects = objects_of(dataset)
        if objects is None:
            continue
        lines = lines_of_objects(cfg, objects)
        yield from (Result(NOTE, line) for line in lines)
        if not lines:
            yield Result(OK, f'{objects}')


def check_silent_faults(cfg: Config) -> Iterator[Result]:
    """Whether something is wrong with the model or its pictures although it would train."""
    from cvt_dense.engine.faults import random_start_faults, silent_faults

    faults = [*silent_faults(cfg), *([] if cfg.get('load_from') else random_start_faults(cfg))]
    yield from (Result(NOTE, fault) for fault in faults)
    if not faults:
        yield Result(OK, 'no wrong strides, no pictures unlike the weights, no map that nothing reads, as far as seen')


def check_parts(cfg: Config) -> Iterator[Result]:
    """Whether the config sets all that training is made of."""
    from cvt_dense.engine.config import check_complete
    from cvt_dense.errors import UserError

    try:
        check_complete(cfg, 'train')
    except UserError as error:
        yield Result(FAIL, error.fault, error.cure)


def splits_of(cfg: Config) -> list[str]:
    """The splits that a config has data for; those for tests are mostly those for validation."""
    splits = ['train', 'val'] if cfg.get('val_cfg') else ['train']
    own, others = ((cfg.get(f'{split}_dataloader') or {}).get('dataset') for split in ('test', 'val'))
    if own and cfg.get('test_cfg') and (own != others or cfg.get('test_evaluator') != cfg.get('val_evaluator')):
        splits.append('test')
    return splits


def config_checks(cfg: Config, given: Given) -> list[Check]:
    """The checks of a config, in the order of a run."""
    missing = list(check_parts(cfg))
    if missing:
        return [Check('config', lambda: iter(missing))]
    loaded: dict[str, list[Any]] = {}
    return [
        *(
            Check(f'{split} data', lambda split=split: check_data(cfg, given, split, loaded))
            for split in splits_of(cfg)
        ),
        Check('classes', lambda: check_classes(cfg, given)),
        Check('checkpoint', lambda: check_checkpoint(cfg, given)),
        *([Check('objects', lambda: check_objects(cfg, loaded))] if cfg.default_scope == 'mmdet' else []),
        Check('schedule', lambda: check_schedule(cfg, loaded)),
        Check('silent faults', lambda: check_silent_faults(cfg)),
        Check('memory', lambda: check_memory(cfg, given)),
        Check('learning rate', lambda: check_learning_rate(cfg, given)),
    ]


def environment_checks(scopes: set[str]) -> list[Check]:
    """The checks of the machine, for configs that need those of mmdet and mmseg."""
    return [
        Check('python', machine.check_python),
        Check('setuptools', machine.check_setuptools),
        *(
            Check(package.module, lambda package=package: machine.check_package(package, scopes))
            for package in PACKAGES
        ),
        Check('pair', machine.check_torchvision_pair),
        Check('stack', machine.check_stack),
        Check('mmcv operators', machine.check_mmcv_operators),
        Check('compiling', machine.check_compiling),
        Check('gpu', machine.check_gpu),
        Check('attention', machine.check_attention),
    ]


def scopes_of(cfg: Config) -> set[str]:
    """The toolkits that a config needs: its own, and those whose parts its model has."""
    return {cfg.default_scope, *re.findall(r"'(mmdet|mmseg)\.", str(cfg.model))}


def parsed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """The values of ``KEY=VALUE``, as the other tools parse them."""
    from mmengine.config import DictAction

    parser = argparse.ArgumentParser(prog='doctor.py')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={})
    return parser.parse_args(['--cfg-options', *overrides] if overrides else []).cfg_options


def look_over(given: Given) -> int:
    """Check the machine and a config; returns the exit code."""
    try:
        from cvt_dense.engine.config import load_config
        from cvt_dense.errors import UserError
    except Exception as error:  # what a package that does not fit its surroundings raises can be anything
        is_missing = isinstance(error, ModuleNotFoundError) and error.name == 'cvt_dense'
        fix = f"{PIP} install --no-deps --no-build-isolation -e '{ROOT}'" if is_missing else 'see the lines above'
        result = Result(FAIL, f'cannot be checked: {in_a_line(error)}', fix)
        return report([*environment_checks(set()), Check('config', lambda: iter([result]))])
    try:
        with redirect_stdout(io.StringIO()):  # mmengine prints every variable that it replaces
            cfg = load_config(given.config, parsed(given.overrides))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return report([*environment_checks(scopes_of(cfg)), *config_checks(cfg, given)])


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', nargs='?', metavar='CONFIG', help='config file to check too')
    parser.add_argument('--cfg-options', nargs='+', default=[], help='override settings of the config: KEY=VALUE ...')
    args = parser.parse_args(arguments)
    config = args.config
    if args.cfg_options and not config:
        parser.error('--cfg-options overrides settings of a config, and none is named')
    if config and not Path(config).is_file():
        print(
            f'error: config {config} does not exist; the ones that come with cvt_dense are in configs/', file=sys.stderr
        )
        return 2
    warnings.simplefilter('ignore')  # from other packages' imports
    return look_over(Given(config, tuple(args.cfg_options))) if config else report(environment_checks(set()))


if __name__ == '__main__':
    sys.exit(main())
