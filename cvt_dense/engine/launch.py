"""Build and run mmengine's Runner: what goes wrong, or stops it from outside, is one line."""

from __future__ import annotations

import copy
import inspect
import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import NoReturn

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.distributed import DistNetworkError, DistStoreError

from .. import cli
from ..datasets.check import build_data
from ..datasets.paths import check_data
from ..errors import UserError, of_file, reason
from ..registry import type_name
from ..signals import Interrupted, signals
from .checkpoint_files import load_checkpoints_safely, write_files_atomically
from .command import command
from .config import add_hook, check_complete, leave_out_hooks
from .console import in_the_file_only, quiet
from .devices import hide_gpu_without_operators, prepare_launcher, use_batchnorm_without_gpu
from .failures import cannot_be_built, in_one_line, lost_process
from .faults import random_start_faults, schedule_faults, silent_faults
from .interruption import InterruptionHook
from .log_to import continue_logs, leave_out_logs
from .overview import overview
from .processes import is_first, leave
from .random_start import AlreadyTold
from .resume import make_resumable
from .run_checkpoints import Start, check_checkpoint, find_start, start_from
from .work_dir import claimed, make_output_folders, way_on
from .workers import protect_workers


def run(main: Callable[[], None]) -> NoReturn:
    """Run the ``main`` of a tool that reads and writes training checkpoints, see :func:`cvt_dense.cli.run`.

    A signal to stop ends it with 128 and the signal's number, and one line on stderr.
    """
    load_checkpoints_safely()
    write_files_atomically()
    exit_code, all_stop = 1, False
    try:
        try:
            signals.listen()
            cli.run(partial(_with_one_line_for_the_network, main))
        finally:
            signals.response = 'note'  # it ends anyway
            command.again = None  # its messages are written
    except SystemExit as end:
        exit_code, all_stop = end.code, end.code == 0
    except Interrupted as stop:
        if is_main_process():
            print(stop, file=sys.stderr)
        exit_code, all_stop = stop.exit_code, stop.all_stop
    except Exception:  # a fault of ours
        traceback.print_exc()
    leave(exit_code, all_stop)


def _with_one_line_for_the_network(main: Callable[[], None]) -> None:
    try:
        main()
    except (DistNetworkError, DistStoreError) as error:  # a port is taken, or a process does not come
        raise UserError(
            f'the processes cannot meet: {reason(error)}; torchrun --standalone, or --master-port, takes another port'
        ) from error


def build_runner(cfg: Config, asked: Config | None = None) -> Runner:
    """Build the Runner that a config describes; its log goes on in :mod:`cvt_dense.engine.console`'s way.

    Args:
        cfg: Changed in place.
        asked: The config as the user has it, without what is added to ``cfg`` to run it: it goes into the work
            directory and into checkpoints, and can be trained from again. By default ``cfg`` as it is given.

    Raises:
        UserError: If a part of it cannot be built as the config has it.
    """
    asked = asked or copy.deepcopy(cfg)
    protect_workers(cfg)
    leave_out_hooks(cfg)
    for hook in ('InterruptionHook', 'StopWhenDivergedHook'):
        add_hook(cfg, hook)
    try:
        runner_type = RUNNERS.get(cfg.get('runner_type', 'Runner'))
        arguments = inspect.signature(runner_type).parameters.keys() - {'cfg'}
        with ExitStack() as built:
            return quiet(runner_type, built)(cfg=asked, **{name: cfg[name] for name in arguments if name in cfg})
    except Exception as error:  # constructors and assertions of all toolkits
        raise cannot_be_built('the config', error) from error


def build_optimizer(runner: Runner) -> None:
    """Build the optimizer now, where training would do it: a mistake in its settings is a line, not a stack trace.

    Raises:
        UserError: If it cannot be built as the config has it.
    """
    if not isinstance(runner, Runner):  # a FlexibleRunner's strategy has to build it, from the model that it wraps
        return
    try:
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    except Exception as error:  # as above
        raise cannot_be_built('optim_wrapper', error) from error


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
    check_complete(cfg, 'train')
    splits = ('train', 'val') if cfg.get('val_cfg') else ('train',)
    check_data(cfg, splits)
    use_batchnorm_without_gpu(cfg)
    asked = copy.deepcopy(cfg)
    faults = silent_faults(cfg) if is_first(cfg.launcher) else []
    if not make_resumable(cfg):
        print(f'note: runs of {type_name(cfg.train_cfg)} do not resume exactly', file=sys.stderr)
    with claimed(cfg.work_dir, cfg.launcher):
        start = find_start(cfg, resume)
        told = random_start_faults(cfg) if start.path is None and is_first(cfg.launcher) else []
        continue_logs(cfg, start)
        make_output_folders(cfg, splits)
        runner = build_runner(cfg, asked)
        if told:
            runner.register_hook(AlreadyTold())
        for fault in [*faults, *told]:
            print_log(fault, logger='current', level=logging.WARNING)
        with in_the_file_only(runner.logger):
            build_data(runner, splits)
            build_optimizer(runner)
        for fault in schedule_faults(asked, len(runner.train_loop.dataloader)) if is_first(cfg.launcher) else []:
            print_log(fault, logger='current', level=logging.WARNING)
        start_from(runner, start)
        runner.logger.info(overview(runner, start, splits))
        run_training(runner)


def test(cfg: Config, checkpoint: str, asked: Config | None = None) -> None:  # noqa: PT028  no test of pytest's
    """Evaluate a checkpoint as a config says.

    Args:
        cfg: Changed in place.
        checkpoint: File that training wrote, or its address.
        asked: The config as the user has it, see :func:`build_runner`.

    Raises:
        UserError: If something that the run needs is missing or wrong.
        CheckpointError: If weights cannot be read.
    """
    check_complete(cfg, 'test')
    check_checkpoint(checkpoint)
    check_data(cfg, ('test',))
    use_batchnorm_without_gpu(cfg)
    make_output_folders(cfg, ('test',))
    asked = asked or copy.deepcopy(cfg)
    leave_out_logs(cfg)
    runner = build_runner(cfg, asked)
    with in_the_file_only(runner.logger):
        build_data(runner, ('test',))
    start = Start(checkpoint, whole=True)
    start_from(runner, start)
    runner.logger.info(overview(runner, start, ('test',)))
    with in_one_line(runner, 'evaluation'):
        runner.test()


def run_training(runner: Runner) -> None:
    """Train, and let what ends a run be one line that says where its work is.

    Raises:
        Interrupted: If a signal says to stop; what was trained is saved then.
        UserError: If it fails, or a process that the run needs was killed.
    """
    try:
        with in_one_line(runner, 'training'):
            runner.train()
    except (Interrupted, Exception) as error:
        number = signals.number or getattr(error, 'number', 0)  # the latter from another process
        if isinstance(error, Interrupted) or (number and signals.response == 'raise'):  # something made an error of it
            (hook,) = (hook for hook in runner.hooks if isinstance(hook, InterruptionHook))
            message = f'{Interrupted(number)} {hook.save(runner)}; {way_on(runner.work_dir)}'
            raise Interrupted(number, message, getattr(error, 'all_stop', False)) from None
        if number and lost_process(error):  # which got the signal that this process got
            raise Interrupted(number, f'{Interrupted(number)}; {way_on(runner.work_dir)}') from error
        if isinstance(error, OSError):  # a disk that is full
            raise UserError(f'{of_file(error)}; {way_on(runner.work_dir)}') from error
        raise
    finally:
        signals.response = 'raise'
