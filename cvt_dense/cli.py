"""What command-line tools share: a user's mistake ends as one line and exit code 2, never as a stack trace."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import FrameType
from typing import NoReturn

from .errors import UserError, of_file, reason
from .signals import Interrupted, signals

#: What to install for a module of another name; two stacks bring the same modules: the maintained fork and upstream.
_PACKAGES = {
    'mmengine': 'onedl-mmengine, or upstream mmengine',
    'mmcv': '--no-build-isolation onedl-mmcv, or upstream mmcv',
    'mmdet': 'onedl-mmdetection, or upstream mmdet',
    'mmseg': 'onedl-mmsegmentation, or upstream mmsegmentation',
    'skimage': 'scikit-image',
    'gradio': "'gradio>=6.29'",
    'cv2': 'opencv-python-headless',
}


def check_installed(*modules: str) -> None:
    """Check that modules can be found, without importing them.

    Raises:
        UserError: If one cannot; the message says what to install.
    """
    for module in modules:
        if find_spec(module) is None:
            package = _PACKAGES.get(module, module)
            raise UserError(f'{module} is not installed: pip install {package} (see docs/install.md)')


def need(*modules: str) -> None:
    """End a tool with one line if modules that it needs are not installed."""
    try:
        check_installed(*modules)
    except UserError as error:
        sys.exit(_fail(str(error)))


class Stopped(KeyboardInterrupt):
    """A signal says to stop: what is open is closed, and what is half done removed, as Ctrl-C does in Python.

    Args:
        number: The signal.
        message: The line to end with; by default that the signal stopped the tool.
    """

    def __init__(self, number: int = signal.SIGINT, message: str | None = None) -> None:
        super().__init__(f'stopped by {signal.Signals(number).name}' if message is None else message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells give a process that a signal ended."""
        return 128 + self.number


def stop_of(interrupt: KeyboardInterrupt) -> Stopped:
    """What a ``KeyboardInterrupt`` is, if Python itself raised it for Ctrl-C."""
    return interrupt if isinstance(interrupt, Stopped) else Stopped(signal.SIGINT)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command-line tool's ``main`` and exit: with 0, or 2 and one line on stderr for a mistake.

    Ctrl-C, SIGTERM and SIGHUP raise :class:`Stopped` within it, and end it with 128 and the signal's number.
    """
    try:
        with _signals_raise():
            main()
    except UserError as error:
        sys.exit(_fail(str(error)))
    except pickle.UnpicklingError as error:  # from a URL, which mmengine reads by itself
        sys.exit(_fail(f'a checkpoint holds more than weights and was refused: {reason(error)}'))
    except OSError as error:
        sys.exit(_fail(of_file(error)))
    except KeyboardInterrupt as interrupt:
        stop = stop_of(interrupt)
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)
    sys.exit(0)


def run_and_note_signals(main: Callable[[], None]) -> NoReturn:
    """As :func:`run`, for a tool that looks at :mod:`cvt_dense.signals` and stops where nothing is half done."""
    signals.listen()
    try:
        run(main)
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        sys.exit(stop.exit_code)


#: Seconds in which another signal is the same one again: timeout(1) sends it to the process, and to all of its group.
_TWICE = 1.0


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Let signals to stop raise :class:`Stopped`, the first one; a later one ends the process at once.

    Signals that are ignored, as under nohup, stay so, and those that somebody handles already are left to him.
    """
    pid, received = os.getpid(), -1.0

    def receive(number: int, frame: FrameType | None) -> None:
        nonlocal received
        if os.getpid() != pid:  # a process that was forked, before it has said what signals are to it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if received < 0:
            received = time.monotonic()
            raise Stopped(number)
        if time.monotonic() - received > _TWICE:
            os._exit(128 + number)

    defaults = signal.SIG_DFL, signal.default_int_handler
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    before = {number: handler for number, handler in before.items() if handler in defaults}
    for number in before:
        signal.signal(number, receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _fail(message: str) -> int:
    print(f'error: {message}', file=sys.stderr)
    return 2
