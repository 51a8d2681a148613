"""What of a run's log is shown: what mmengine logs while a run is built goes to the log file alone.

That is the environment, the whole config, the order of hooks and the settings of each parameter: hundreds of lines
before the first loss. It is told by when it is logged, not by its text. Warnings are shown all the same.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from types import FrameType
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

#: Of warnings: the file and line that log them, and their words.
_Kind = tuple[str, int, str]


@contextmanager
def in_the_file_only(logger: MMLogger) -> Iterator[None]:
    """Keep what is logged within off the console, but for warnings and errors, and what pycocotools prints.

    Args:
        logger: Of a run. With ``log_level='DEBUG'``, which somebody sets to see more, everything is shown; without a
            log file too.
    """
    files = [handler for handler in logger.handlers if isinstance(handler, logging.FileHandler)]
    consoles = [h for h in logger.handlers if files and h not in files and h.level > logging.DEBUG]
    important = _Important()
    for handler in consoles:
        handler.addFilter(important)
    try:
        with redirect_stdout(_Prints(sys.stdout) if consoles else sys.stdout):
            yield
    finally:
        for handler in consoles:
            handler.removeFilter(important)
    for line in important.left_out():
        logger.warning(line)


def quiet(runner_type: type[Runner], until: ExitStack) -> type[Runner]:
    """A Runner that is built under :func:`in_the_file_only`, which its logger is needed for.

    Args:
        runner_type: Any kind of Runner.
        until: Closed when it is built.
    """

    def build_logger(self: Runner, *args: Any, **kwargs: Any) -> MMLogger:
        logger = runner_type.build_logger(self, *args, **kwargs)
        until.enter_context(in_the_file_only(logger))
        return logger

    names = dict(build_logger=build_logger, __module__=runner_type.__module__, __doc__=runner_type.__doc__)
    return type(runner_type.__name__, (runner_type,), names)


class _Important(logging.Filter):
    """Warnings and errors: of those from one place and of like words, as of each parameter that is frozen, a few."""

    SHOWN = 2
    #: Numbers, and names of files and parameters: what tells warnings of one kind apart.
    _NAME = re.compile(r'\S*[\d./_]\S*')

    def __init__(self) -> None:
        super().__init__()
        self._firsts: dict[_Kind, str] = {}
        self._counts: Counter[_Kind] = Counter()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is shown."""
        if record.levelno < logging.WARNING:
            return False
        kind = (*_place(sys._getframe(1)), self._NAME.sub('', record.getMessage()))
        self._firsts.setdefault(kind, record.getMessage())
        self._counts[kind] += 1
        return self._counts[kind] <= self.SHOWN

    def left_out(self) -> list[str]:
        """A line for each kind of warnings of which not all were shown."""
        return [
            f'{count - self.SHOWN} more like "{self._firsts[kind]}" are in the log file'
            for kind, count in self._counts.items()
            if count > self.SHOWN
        ]


def _place(frame: FrameType | None) -> tuple[str, int]:
    """The line of code that logs something: a record names that in mmengine's ``print_log``, which all go through."""
    while frame and frame.f_globals.get('__name__', '').startswith(('logging', 'mmengine.logging')):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame else ('', 0)


class _Prints:
    """A stream without what pycocotools prints as it builds its indices; what anyone else prints is shown."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if it does not come from pycocotools."""
        caller = sys._getframe(1).f_globals.get('__name__', '')  # print itself has no frame
        return len(text) if caller.startswith('pycocotools.') else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
