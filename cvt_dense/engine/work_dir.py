"""Where a run writes: its work directory, one run at a time, and the folders that its evaluators fill."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError
from ..registry import each_evaluator
from .command import command
from .processes import is_first


@contextmanager
def claimed(work_dir: str, launcher: str = 'none') -> Iterator[None]:
    """Hold a work directory, which is made if need be, against other runs.

    The first of several processes holds it. The kernel lets go of it when the process ends, however that may be.

    Raises:
        UserError: If another run has it, or it cannot be written to.
    """
    if not is_first(launcher):
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


def make_output_folders(cfg: Config, splits: Iterable[str]) -> None:
    """Make the folders that evaluators write into, in every process.

    The toolkits' evaluators leave it to the first process, and others may come to write before it.

    Args:
        cfg: A whole config.
        splits: Those that are evaluated.

    Raises:
        UserError: If one cannot be made.
    """
    for split in splits:
        for evaluator in each_evaluator(cfg.get(f'{split}_evaluator')):
            folder = evaluator.get('output_dir')
            if not folder:
                continue
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f'{folder} cannot be written to: {error.strerror}; choose another folder') from error


def way_on(work_dir: str) -> str:
    """How to go on from what a work directory holds, as the end of a message: the command, if it is known."""
    note = Path(work_dir) / 'last_checkpoint'
    noted = note.read_text().strip() if note.is_file() else ''
    if not noted:
        return 'no checkpoint has been written yet'
    return f'go on from {noted} with {command.again or "--resume"}'
