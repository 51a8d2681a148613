"""A run's work directory: one run at a time, and what it holds to go on from."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import UserError

_RANKS = dict(pytorch='RANK', slurm='SLURM_PROCID', mpi='OMPI_COMM_WORLD_RANK')


@contextmanager
def claimed(work_dir: str, launcher: str = 'none') -> Iterator[None]:
    """Hold a work directory, which is made if need be, against other runs.

    The first of several processes holds it. The kernel lets go of it when the process ends, however that may be.

    Raises:
        UserError: If another run has it, or it cannot be written to.
    """
    if os.environ.get(_RANKS.get(launcher, ''), '0') != '0':
        yield
        return
    try:
        Path(work_dir).mkdir(parents=True, exist_ok=True)
        file = open(Path(work_dir) / '.lock', 'a+')  # noqa: SIM115  closed below, and only by its one owner
    except OSError as error:
        raise UserError(
            f'work_dir {work_dir} cannot be written to: {error.strerror}; choose another --work-dir'
        ) from error
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not flock, which workers would inherit
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                owner = file.read().strip() or 'another process'
                raise UserError(f'work_dir {work_dir} is in use by {owner}; choose another --work-dir') from error
            print(f'note: work_dir {work_dir} cannot be locked against other runs: {error.strerror}', file=sys.stderr)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}\n')
        file.flush()
        yield


def way_on(work_dir: str) -> str:
    """How to go on from what a work directory holds, as the end of a message."""
    note = Path(work_dir) / 'last_checkpoint'
    noted = note.read_text().strip() if note.is_file() else ''
    return f'go on from {noted} with --resume' if noted else 'no checkpoint has been written yet'
