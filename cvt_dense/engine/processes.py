"""A run of several processes: what it wraps the model in, and how its processes end."""

from __future__ import annotations

import atexit
import os
import sys
from contextlib import suppress
from typing import NoReturn

from mmengine.model import is_model_wrapper
from torch import distributed, nn

_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


def is_first(launcher: str) -> bool:
    """Whether this is the first, or only, process of a launcher, which can be asked before its group has started."""
    return os.environ.get(_RANKS.get(launcher, ''), '0') == '0'


def unwrapped(model: nn.Module) -> nn.Module:
    """A model without what distributed training wraps it in, which puts ``module.`` before its parameters' names."""
    while is_model_wrapper(model):
        model = model.module
    return model


def leave(exit_code: int, all_stop: bool) -> NoReturn:
    """End this process, in order where it belongs to a group of processes.

    Threads of gloo that still hold tensors while the interpreter is taken down abort the process, so the group has to
    end before. That is possible only where all processes are done: otherwise it would wait, for half an hour, for
    collectives that the others do not take part in any more. Then the process leaves without taking anything down.

    Args:
        exit_code: Of the process.
        all_stop: All processes of the group are at their ends: they end together, as the first one to exit, unless it
            does so with 0, has a launcher end the others.
    """
    if not distributed.is_initialized():
        sys.exit(exit_code)
    atexit._run_exitfuncs()
    if all_stop:
        with suppress(RuntimeError):  # another process has failed all the same, and has said why
            distributed.barrier()
        distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
