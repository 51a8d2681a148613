"""The command line that goes on with this run, as it can be pasted into a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.config import Config

_RESUME = '--resume'


class Command:
    """How this process was started, if that is known: by a tool that takes ``--resume``.

    Attributes:
        again: The line that goes on with the run; None if nobody has said that one would.
    """

    def __init__(self) -> None:
        self.again: str | None = None

    def remember(self, cfg: Config) -> None:
        """Note the command line of this process, whose tool goes on with its run if it gets ``--resume``.

        Args:
            cfg: Config of the run: its launcher counts, and the environment variables that it was read with.
        """
        arguments = with_resume(sys.argv)
        if cfg.launcher == 'none':
            words = [_python(), *arguments]
        else:
            launched = _launched_by(sys.argv)
            if launched is None:  # of srun and mpirun nothing is left to see
                return
            words = [*launched, *arguments]
        self.again = _line(words, cfg.env_variables)


command = Command()


def with_resume(arguments: Sequence[str]) -> list[str]:
    """Arguments of a tool with ``--resume``, for the newest checkpoint, instead of another one that they may name."""
    kept: list[str] = []
    names_checkpoint = False
    for argument in arguments:
        is_path = names_checkpoint and not argument.startswith('-')
        names_checkpoint = argument == _RESUME
        if not is_path and not names_checkpoint and not argument.startswith(f'{_RESUME}='):
            kept.append(argument)
    return [*kept, _RESUME]


def _python() -> str:
    """The interpreter, by its short name where that finds it."""
    return next((name for name in ('python', 'python3') if shutil.which(name) == sys.executable), sys.executable)


def _launched_by(arguments: Sequence[str]) -> list[str] | None:
    """What torchrun was called with before the tool's file, by the process that it runs in, which started this one."""
    try:
        words = [os.fsdecode(word) for word in Path(f'/proc/{os.getppid()}/cmdline').read_bytes().split(b'\0')[:-1]]
    except OSError:  # no Linux
        return None
    count = len(arguments)
    if len(words) <= count or words[-count:] != list(arguments):
        return None
    launcher = words[:-count]
    if Path(launcher[0]).name.startswith('python') and len(launcher) > 1:
        if launcher[1:3] == ['-m', 'torch.distributed.run']:
            return ['torchrun', *launcher[3:]]
        if Path(launcher[1]).name == 'torchrun':  # a script with the interpreter in its first line
            return ['torchrun', *launcher[2:]]
    return launcher


def _line(words: Sequence[str], variables: Mapping[str, str]) -> str:
    """A line of shell, with environment variables, and with the folder if it goes to a log, which is read elsewhere."""
    folder = '' if sys.stderr.isatty() else f'cd {shlex.quote(os.getcwd())} && '
    settings = [f'{name}={shlex.quote(value)}' for name, value in sorted(variables.items())]
    return folder + ' '.join([*settings, shlex.join(words)])
