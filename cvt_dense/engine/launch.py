"""Prepare a run of mmengine's Runner from a config: overrides, and checks that fail before the first iteration."""

from __future__ import annotations

import argparse
import inspect
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.distributed import DistNetworkError, DistStoreError

from .. import cli
from ..checkpoints.unpickling import load_checkpoints_safely
from ..errors import UserError, reason
from .devices import use_gloo_without_gpu
from .interruption import Interrupted, InterruptionHook, signals
from .resume import write_files_atomically
from .work_dir import way_on
from .workers import protect_workers


def run(main: Callable[[], None]) -> NoReturn:
    """Run the ``main`` of a tool that reads and writes training checkpoints, see :func:`cvt_dense.cli.run`.

    A signal to stop ends it with 128 and the signal's number, and one line on stderr.
    """
    load_checkpoints_safely()
    write_files_atomically()
    try:
        signals.listen()
        cli.run(partial(_with_one_line_for_the_network, main))
    except Interrupted as stop:
        if is_main_process():
            print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)


def _with_one_line_for_the_network(main: Callable[[], None]) -> None:
    try:
        main()
    except (DistNetworkError, DistStoreError) as error:  # a port is taken, or a process does not come
        raise UserError(
            f'the processes cannot meet: {reason(error)}; torchrun --standalone, or --master-port, takes another port'
        ) from error


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing share, under the names of OpenMMLab's tools."""
    parser.add_argument('config', help='config file')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/CONFIG NAME)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: KEY=VALUE ..., e.g. train_dataloader.batch_size=4',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes the rank as an argument, torchrun in the environment.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the arguments name, with their overrides.

    Raises:
        UserError: If the file is missing or cannot be parsed.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    if not Path(args.config).is_file():
        raise UserError(f'config {args.config} does not exist; the ones that come with cvt_dense are in configs/')
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is a program and may raise anything
        raise UserError(f'config {args.config} cannot be read: {type(error).__name__}: {reason(error)}') from error
    if 'default_scope' not in cfg or 'model' not in cfg:
        raise UserError(f'config {args.config} is not a runnable one: it sets no model or no default_scope')
    if cfg.default_scope in ('mmdet', 'mmseg'):
        cli.check_installed('mmcv', cfg.default_scope)
    if args.cfg_options:
        _check_override_paths(cfg, args.cfg_options)
        try:
            cfg.merge_from_dict(args.cfg_options)
        except Exception as error:  # mmengine raises all kinds for a path that leads nowhere
            options = ', '.join(args.cfg_options)
            raise UserError(f'--cfg-options {options}: {type(error).__name__}: {reason(error)}') from error
    cfg.launcher = args.launcher
    if args.work_dir or cfg.get('work_dir') is None:
        cfg.work_dir = args.work_dir or str(Path('work_dirs') / Path(args.config).stem)
    return cfg


def _check_override_paths(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse an override that nothing would read: mmengine adds unknown keys without a word."""
    known = {*cfg, *inspect.signature(Runner.__init__).parameters}
    for option in options:
        key = option.split('.')[0]
        if key not in known:
            raise UserError(f'--cfg-options {option}: neither the config nor the Runner has a setting {key!r}')


def prepare_launcher(cfg: Config) -> None:
    """Get ready for several processes, on GPUs or, with torchrun, on CPUs.

    Raises:
        UserError: If the launcher's environment is missing, or GPUs are and the launcher needs them.
    """
    if cfg.launcher == 'none':
        if 'strategy' in cfg:
            raise UserError(
                f'{cfg.strategy.type} needs several processes: torchrun --nproc_per_node=N … --launcher pytorch'
            )
        return
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch needs the processes that torchrun starts: torchrun --nproc_per_node=N TOOL …'
        )
    if cfg.launcher != 'pytorch' and not torch.cuda.is_available():
        raise UserError(
            f'--launcher {cfg.launcher} needs GPUs, and torch sees none: use torchrun and --launcher pytorch on CPUs'
        )
    is_sharded = 'FSDP' in cfg.get('strategy', {}).get('type', '')
    if is_sharded and not torch.cuda.is_available() and cfg.default_hooks.get('checkpoint', {}) is not None:
        raise UserError(
            'FSDP saves checkpoints on GPUs only, and torch sees none: to try it without, leave them out with '
            '--cfg-options default_hooks.checkpoint=None'
        )
    use_gloo_without_gpu(cfg)


def hide_gpu_without_operators(cfg: Config) -> None:
    """Hide the GPU from a detector if mmcv's operators were built without CUDA, and say so.

    mmengine would put the model on it, and the first RoIAlign would fail. To be called before anything asks torch for
    GPUs, which it does once only.

    Raises:
        UserError: If mmcv was built without its operators, or for another torch.
    """
    if cfg.default_scope != 'mmdet':
        return
    try:
        from mmcv.ops import get_compiling_cuda_version  # which segmentation can do without
    except ImportError as error:
        raise UserError(f'mmcv has no working operators: {reason(error)}; run python tools/doctor.py') from error
    if get_compiling_cuda_version() != 'not available':
        return
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    if shutil.which('nvidia-smi'):
        print(
            'the GPU is not used: mmcv was built without CUDA; install the CUDA toolkit and build mmcv again',
            file=sys.stderr,
        )


def use_batchnorm_without_gpu(cfg: Config) -> None:
    """Turn SyncBN into BN where there is no GPU, which it needs, and say so."""
    if torch.cuda.is_available():
        return
    replaced = _replace_type(cfg.model, 'SyncBN', 'BN')
    if cfg.get('sync_bn'):  # mmengine's setting for all of a model's norms at once
        cfg.sync_bn = None
        replaced += 1
    if replaced:
        print(f'no GPU: {replaced} SyncBN settings of the model are replaced by BN', file=sys.stderr)


def _replace_type(node: Any, old: str, new: str) -> int:
    """Replace ``type=old`` in place all through a config; returns how often."""
    if isinstance(node, (list, tuple)):
        return sum(_replace_type(entry, old, new) for entry in node)
    if not isinstance(node, dict):
        return 0
    hit = node.get('type') == old
    if hit:
        node['type'] = new
    return int(hit) + sum(_replace_type(entry, old, new) for entry in node.values())


def enable_amp(cfg: Config) -> None:
    """Switch the optimizer wrapper to automatic mixed precision: bfloat16 where supported, else scaled float16.

    RoI extractors and deformable attention stay in float32 (see :mod:`cvt_dense.engine.precision`).

    Raises:
        UserError: If the config's optimizer wrapper is a special one.
    """
    wrapper = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if wrapper not in ('OptimWrapper', 'AmpOptimWrapper'):
        raise UserError(f'--amp works with OptimWrapper, not with the {wrapper} of the config')
    for setting in ('dtype', 'loss_scale'):
        cfg.optim_wrapper.pop(setting, None)
    if not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False):
        cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    else:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='Float32OperatorsHook')]


def log_to_tensorboard(cfg: Config) -> None:
    """Let a run write its scalars and pictures for TensorBoard too, and say where.

    Raises:
        UserError: If tensorboard is not installed.
    """
    if find_spec('tensorboard') is None:
        raise UserError('--tensorboard needs a package that is not installed: pip install tensorboard')
    default = ConfigDict(type='Visualizer', vis_backends=[ConfigDict(type='LocalVisBackend')])
    visualizer = cfg.setdefault('visualizer', default)
    backends = list(visualizer.get('vis_backends') or [])
    if not any(backend['type'] == 'TensorboardVisBackend' for backend in backends):
        visualizer.vis_backends = [*backends, ConfigDict(type='TensorboardVisBackend')]
    print(f'events go to {cfg.work_dir}/*/vis_data: tensorboard --logdir {cfg.work_dir}', file=sys.stderr)


def enable_auto_scale_lr(cfg: Config) -> None:
    """Scale the learning rate by the batch size over the config's ``auto_scale_lr.base_batch_size``.

    Raises:
        UserError: If the config does not say for which batch size its rate is.
    """
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError('--auto-scale-lr needs auto_scale_lr.base_batch_size in the config')
    cfg.auto_scale_lr.enable = True


def build_runner(cfg: Config) -> Runner:
    """Build the Runner that a config describes.

    Raises:
        UserError: If a part of it cannot be built as the config has it.
    """
    protect_workers(cfg)
    hooks = [ConfigDict(type='InterruptionHook'), ConfigDict(type='StopWhenDivergedHook')]
    cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), *hooks]
    try:
        return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    except (KeyError, TypeError, ValueError) as error:  # what registries and constructors raise for wrong settings
        raise UserError(f'the config cannot be built: {type(error).__name__}: {reason(error)}') from error


def build_optimizer(runner: Runner) -> None:
    """Build the optimizer now, where training would do it: a mistake in its settings is a line, not a stack trace.

    Raises:
        UserError: If it cannot be built as the config has it.
    """
    if not isinstance(runner, Runner):  # a FlexibleRunner's strategy has to build it, from the model that it wraps
        return
    try:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'optim_wrapper cannot be built: {type(error).__name__}: {reason(error)}') from error


def train(runner: Runner) -> None:
    """Train, and let what ends a run from outside be one line that says where its work is.

    Raises:
        Interrupted: If a signal says to stop; what was trained is saved then.
        UserError: If a process that the run needs was killed.
    """
    try:
        runner.train()
    except (Interrupted, Exception) as error:
        if isinstance(error, Interrupted) or (signals.number and signals.response == 'raise'):  # made an error of
            number = signals.number or error.number  # the latter from another process
            (hook,) = (hook for hook in runner.hooks if isinstance(hook, InterruptionHook))
            raise Interrupted(number, f'{Interrupted(number)} {hook.save(runner)}; {way_on(runner.work_dir)}') from None
        cause = _lost_process(error)
        if cause is None:
            raise
        if signals.number:  # it got the signal that this process got
            raise Interrupted(signals.number, f'{Interrupted(signals.number)}; {way_on(runner.work_dir)}') from error
        raise UserError(f'{cause}; {way_on(runner.work_dir)}') from error


def _lost_process(error: BaseException) -> str | None:
    """What an error says about a process that is gone, if it does.

    torch raises when the worker ends, wherever this process is; what is there may raise something else for it.
    """
    message, context = str(error), error.__context__
    worker = re.search(
        r'DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: \w+|exited unexpectedly)', message
    )
    if worker:
        fate = worker[2].replace('is killed', 'was killed')
        return (
            f'data-loader worker {worker[1]} {fate}, most likely since memory ran out: lower '
            'train_dataloader.num_workers or batch_size'
        )
    if 'Connection closed by peer' in message or 'Connection reset by peer' in message:
        return 'another process of this run ended; its own last lines say why'
    return _lost_process(context) if context else None


def draw_predictions(cfg: Config, folder: str) -> None:
    """Let a test run write pictures of ground truth and predictions, side by side, into a folder."""
    hook = 'DetVisualizationHook' if cfg.default_scope == 'mmdet' else 'SegVisualizationHook'
    cfg.default_hooks.setdefault('visualization', dict(type=hook))
    cfg.default_hooks.visualization.draw = True
    cfg.default_hooks.visualization.interval = 1
    if cfg.default_scope == 'mmdet':
        # mmdet joins this to the run's own folder below the work directory, unless it is absolute.
        cfg.default_hooks.visualization.test_out_dir = str(Path(folder).absolute())
    else:
        cfg.visualizer.save_dir = folder


def dump_predictions(cfg: Config, out: str) -> None:
    """Let a test run write its predictions: a pickle for detection, a folder of label maps for segmentation.

    Raises:
        UserError: If ``out`` does not end in ``.pkl`` for detection, or does for segmentation.
    """
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    is_pickle = Path(out).suffix in ('.pkl', '.pickle')
    if cfg.default_scope == 'mmdet':
        if not is_pickle:
            raise UserError(f'--out of a detection config must be a .pkl file, got {out}')
        cfg.test_evaluator = [*evaluators, dict(type='DumpDetResults', out_file_path=out)]
    elif is_pickle:
        raise UserError(f'--out of a segmentation config must be a folder for label maps, got {out}')
    else:
        for evaluator in evaluators:
            evaluator.output_dir = out
            evaluator.keep_results = True  # CityscapesMetric would clear the folder
