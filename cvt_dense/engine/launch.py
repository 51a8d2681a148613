"""Build and run mmengine's Runner: what goes wrong, or stops it from outside, is one line."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.distributed import DistNetworkError, DistStoreError

from .. import cli
from ..datasets.check import build_data
from ..datasets.paths import check_data
from ..errors import UserError, reason
from ..registry import type_name
from .checkpoint_files import load_checkpoints_safely, write_files_atomically
from .devices import hide_gpu_without_operators, prepare_launcher, use_batchnorm_without_gpu
from .interruption import Interrupted, InterruptionHook, signals
from .resume import make_resumable
from .run_checkpoints import check_checkpoint, check_weights, set_resume
from .work_dir import claimed, way_on
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


def prepare_devices(cfg: Config) -> None:
    """Settle what a run computes on, before anything asks torch for GPUs.

    Raises:
        UserError: If mmcv's operators do not work, or the launcher cannot start.
    """
    hide_gpu_without_operators(cfg)
    prepare_launcher(cfg)


def train(cfg: Config, resume: str | None = None) -> None:
    """Train as a config says, after looking at all that could end the run later.

    Args:
        cfg: Changed in place.
        resume: A checkpoint to go on from, or ``'auto'`` for the newest one in the work directory.

    Raises:
        UserError: If something that the run needs is missing or wrong, or a process of it was killed.
        CheckpointError: If weights cannot be read or do not fit.
        Interrupted: If a signal says to stop; what was trained is saved then.
    """
    splits = ('train', 'val') if cfg.get('val_cfg') else ('train',)
    check_data(cfg, splits)
    use_batchnorm_without_gpu(cfg)
    if not make_resumable(cfg):
        print(f'note: runs of {type_name(cfg.train_cfg)} do not resume exactly', file=sys.stderr)
    with claimed(cfg.work_dir, cfg.launcher):
        if resume:
            set_resume(cfg, resume)
        elif cfg.get('load_from'):
            check_checkpoint(cfg.load_from)
        runner = build_runner(cfg)
        build_data(runner, splits)
        build_optimizer(runner)
        if cfg.get('load_from'):
            resumes = bool(cfg.get('resume'))
            prefix = '' if resumes else 'backbone.'  # heads may be for other classes
            check_weights(runner.model, cfg.load_from, prefix, resumes)
        run_training(runner)


def test(cfg: Config, checkpoint: str) -> None:
    """Evaluate a checkpoint as a config says.

    Args:
        cfg: Changed in place.
        checkpoint: File that training wrote, or its address.

    Raises:
        UserError: If something that the run needs is missing or wrong.
        CheckpointError: If weights cannot be read.
    """
    check_checkpoint(checkpoint)
    cfg.load_from = checkpoint
    check_data(cfg, ('test',))
    use_batchnorm_without_gpu(cfg)
    runner = build_runner(cfg)
    check_weights(runner.model, checkpoint)
    build_data(runner, ('test',))
    runner.test()


def run_training(runner: Runner) -> None:
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
