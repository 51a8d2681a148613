"""Processes that load data: they live as long as the process they load for, and no signal but its own ends them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

from mmengine.config import Config, ConfigDict
from mmengine.registry import FUNCTIONS
from torch.utils.data import get_worker_info

from .randomness import derived_seed, seed_everything

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def protect_workers(cfg: Config) -> None:
    """Let a config's data loaders prepare their workers by :func:`init_worker`, unless they have a way of their own."""
    for split in ('train', 'val', 'test'):
        loader = cfg.get(f'{split}_dataloader')
        if isinstance(loader, dict) and 'worker_init_fn' not in loader:
            loader.pop('disable_subprocess_warning', None)  # belongs to mmengine's own worker_init_fn
            loader.worker_init_fn = ConfigDict(type='init_worker')


@FUNCTIONS.register_module()
def init_worker(worker_id: int) -> None:
    """Prepare a data loader's worker, in the worker itself.

    Signals of the terminal or of a job manager go to the whole group of processes: here they are the trainer's to
    answer. If the trainer is gone, the kernel ends the worker. torch's own watch is not enough: a worker with a large
    sample to hand over waits at its end for room in a pipe of which it holds the reading end itself, forever.

    Args:
        worker_id: Ignored; torch has given each worker a seed of its own, which is the same in all ranks.
    """
    if sys.platform == 'linux':
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if not multiprocessing.parent_process().is_alive():  # it died before it could be said
            os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_obey_parent, name='obey parent', daemon=True).start()
    seed_everything(derived_seed(get_worker_info().seed, int(os.environ.get('RANK', 0))))


def _obey_parent() -> None:
    """End this process by the SIGTERM of its parent only."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
