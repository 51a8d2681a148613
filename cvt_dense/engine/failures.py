"""What ended a run: one line that says where and why, with the stack trace in the log file."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError, reason
from .processes import unwrapped
from .work_dir import way_on

_SMALLER = 'lower train_dataloader.batch_size or the size of its images, or set model.backbone.with_cp=True'
_OUT_OF_HOST_MEMORY = re.compile("can't allocate memory|not enough memory|Cannot allocate memory")


def cannot_be_built(what: str, error: Exception) -> UserError:
    """The line for what a registry, a constructor or an assertion in one raises, if the config is wrong.

    Args:
        what: The part of the config.
        error: What was raised.
    """
    if isinstance(error, UserError):
        return error
    return UserError(f'{what} cannot be built: {describe(error)}{_keep_trace(error)}')


def describe(error: BaseException) -> str:
    """The type of an error and its message; where an assertion has none, what it asserts."""
    name = type(error).__name__
    if isinstance(error, AssertionError) and not str(error):
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f'{name}: {place.line} ({Path(place.filename).name}:{place.lineno})'
    return f'{name}: {reason(error)}'


@contextmanager
def in_one_line(runner: Runner, what: str) -> Iterator[None]:
    """Let what goes wrong in a run be one line.

    Args:
        runner: Of the run.
        what: It does, as the message's subject: ``'training'``.

    Raises:
        UserError: For any error: it says at which iteration, in which module and on which shapes; if a process was
            lost, which; if memory was short, what lowers it; if it trained, where its work is.
    """
    try:
        yield
    except (UserError, OSError):  # each a line already
        raise
    except Exception as error:
        lost = lost_process(error)
        if lost:
            raise UserError(f'{lost}; {way_on(runner.work_dir)}') from error
        trains = what == 'training'
        where = f'{what} fails at iteration {runner.iter + 1}' if trains else f'{what} fails'
        after = f'{_keep_trace(error, runner.log_dir)}{f"; {way_on(runner.work_dir)}" if trains else ""}'
        if _is_out_of_memory(error):
            raise UserError(f'{where}: no memory ({reason(error)}): {_SMALLER}{after}') from error
        raise UserError(f'{where}{_module(error, runner.model)}: {describe(error)}{after}') from error


def lost_process(error: BaseException) -> str | None:
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
    return lost_process(context) if context else None


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and bool(_OUT_OF_HOST_MEMORY.search(str(error)))
    )


def _module(error: Exception, model: nn.Module) -> str:
    """The innermost module of a model that an error passed through, and the shapes that it worked on."""
    names = {id(module): name for name, module in unwrapped(model).named_modules()}
    found = ''
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get('self')
        if isinstance(module, nn.Module) and id(module) in names:
            path = f'model.{names[id(module)]}'.rstrip('.')
            found = f' in {path} ({type(module).__name__}{_weight(module)}){_given(frame)}'
    return found


def _weight(module: nn.Module) -> str:
    weight = module._parameters.get('weight')
    return '' if weight is None else f', weight {_shape(weight)}'


def _given(frame: FrameType) -> str:
    """The shapes of the tensors among a call's arguments."""
    code = frame.f_code
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    shapes = [_shapes(frame.f_locals.get(name)) for name in names if name != 'self']
    given = ', '.join(shape for shape in shapes if shape)
    return f' given {given}' if given else ''


def _shapes(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return _shape(value)
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, torch.Tensor) for entry in value):
        return f'[{", ".join(map(_shape, value))}]'
    if isinstance(value, dict):  # a batch as a data loader makes it
        return ', '.join(filter(None, map(_shapes, value.values())))
    return ''


def _shape(tensor: torch.Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'a scalar'


def _keep_trace(error: Exception, log_dir: str | None = None) -> str:
    """Write an error's stack trace to the run's log file; returns where it is, as the end of a message.

    Only the first process has a log file: another one gets one for this, in the folder of the run's logs.
    """
    trace = ''.join(traceback.format_exception(error))
    logger = MMLogger.get_current_instance()
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    for file in files:
        file.emit(logging.LogRecord(logger.name, logging.ERROR, __file__, 0, trace, None, None))
    if files:
        return f'; the stack trace is in {files[0].baseFilename}'
    if log_dir is None:
        return ''
    path = Path(log_dir, f'rank_{get_rank()}.log')
    path.write_text(trace)
    return f'; the stack trace is in {path}'
