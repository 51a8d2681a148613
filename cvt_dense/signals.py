"""Signals that ask a process to stop, for code that comes to an end of its own first."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Literal

from torch import distributed


class Interrupted(BaseException):
    """A signal stops the run; as KeyboardInterrupt no Exception, which code on the way might take for an error."""

    def __init__(self, number: int, message: str | None = None, all_stop: bool = False) -> None:
        super().__init__(f'stopped by {signal.Signals(number).name}' if message is None else message)
        self.number = number
        self.all_stop = all_stop  # all processes of the run, and at the same place

    @property
    def exit_code(self) -> int:
        """What shells give a process that a signal ended."""
        return 128 + self.number


class Signals:
    """The signals that this process was sent.

    Attributes:
        number: The first one; 0 if there was none.
        response: ``'raise'`` raises :class:`Interrupted`, wherever the process is, so that it may get lost: look at
            ``number`` too; ``'note'`` leaves it to the code that reads ``number``. A second signal ends the process.
    """

    #: Seconds in which another signal is the same one again: timeout(1) and job managers send it to the process, and to
    #: all of its group.
    TWICE = 1.0

    def __init__(self) -> None:
        self.number = 0
        self.response: Literal['raise', 'note'] = 'raise'
        self._at = 0.0
        self._pid = 0

    def listen(self) -> None:
        """Handle signals from now on, but for those that are ignored, as under nohup."""
        self._pid = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)
        if not isinstance(sys.unraisablehook, _WithoutInterruptions):
            sys.unraisablehook = _WithoutInterruptions(sys.unraisablehook)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that was forked, before it has said what signals are to it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.number:
            if time.monotonic() - self._at > self.TWICE:
                os._exit(128 + number)
            return
        self.number, self._at = number, time.monotonic()
        if self.response == 'raise':
            raise Interrupted(number)
        _say(f'{signal.Signals(number).name}: saving and stopping; once more to stop at once')


class _WithoutInterruptions:
    """Reports what Python can only report, less :class:`Interrupted`, which is noted and obeyed later.

    A signal may come while a destructor runs, or what is called around a fork: an exception goes no further from there,
    and would look like a fault.
    """

    def __init__(self, report: Callable[[Any], object]) -> None:
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Interrupted):
            self._report(unraisable)


def _say(line: str) -> None:
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0:
        os.write(2, f'{line}\n'.encode())  # print() may be what was interrupted


signals = Signals()
