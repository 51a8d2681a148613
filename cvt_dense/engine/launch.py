"""Build and run mmengine's Runner: what goes wrong, or stops it from outside, is one line."""

from __future__ import annotations

import copy
import inspect
import sys
import traceback
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from mmengine.config import Config
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
from .config import add_hook, check_complete, leave_out_hooks
from .devices import hide_gpu_without_operators, prepare_launcher, use_batchnorm_without_gpu
from .failures import cannot_be_built, in_one_line, lost_process
from .interruption import Interrupted, InterruptionHook, signals
from .processes import leave
from .resume import make_resumable
from .run_checkpoints import Start, check_checkpoint, find_start, start_from
from .work_dir import claimed, way_on
from .workers import protect_workers


def run(main: Callable[[], None]) -> NoReturn:
    """Run the ``main`` of a tool that reads and writes training checkpoints, see :func:`cvt_dense.cli.run`.

    A signal to stop ends it with 128 and the signal's number, and one line on stderr.
    """
    load_checkpoints_safely()
    write_files_atomically()
    exit_code = 1
    try:
        signals.listen()
        cli.run(partial(_with_one_line_for_the_network, main))
    except SystemExit as end:
        exit_code = end.code
    except Interrupted as stop:
        if is_main_process():
            print(stop, file=sys.stderr)
        exit_code = stop.exit_code
    except Exception:  # a fault of ours
        traceback.print_exc()
    leave(exit_code)


def _with_one_line_for_the_network(main: Callable[[], None]) -> None:
    try:
        main()
    except (DistNetworkError, DistStoreError) as error:  # a port is taken, or a process does not come
        raise UserError(
            f'the processes cannot meet: {reason(error)}; torchrun --standalone, or --master-port, takes another port'
        ) from error


def build_runner(cfg: Config, asked: Config | None = None) -> Runner:
    """Build the Runner that a config describes.

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
        return runner_type(cfg=asked, **{name: cfg[name] for name in arguments if name in cfg})
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
    if not make_resumable(cfg):
        print(f'note: runs of {type_name(cfg.train_cfg)} do not resume exactly', file=sys.stderr)
    with claimed(cfg.work_dir, cfg.launcher):
        start = find_start(cfg, resume)
        runner = build_runner(cfg, asked)
        build_data(runner, splits)
        build_optimizer(runner)
        start_from(runner, start)
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
    runner = build_runner(cfg, asked)
    build_data(runner, ('test',))
    start_from(runner, Start(checkpoint, whole=True))
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
            raise Interrupted(number, message) from None
        if number and lost_process(error):  # which got the signal that this process got
            raise Interrupted(number, f'{Interrupted(number)}; {way_on(runner.work_dir)}') from error
        raise
    finally:
        signals.response = 'raise'
