"""The errors that a user can act on: each is one line that says what is wrong and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user has to fix; the message is one line that says what and how.

    Args:
        fault: What is wrong; with how to fix it, unless that is said apart.
        cure: How to fix it, which some tools show by itself.
    """

    def __init__(self, fault: str, cure: str = '') -> None:
        # A DataLoader raises what its workers raise with a stack trace for a message, whose last line is the error.
        last = fault.strip().splitlines()[-1]
        self.fault = last.removeprefix(f'{type(self).__module__}.{type(self).__qualname__}: ')
        self.cure = cure
        super().__init__(f'{self.fault}; {cure}' if cure else self.fault)


class CheckpointError(UserError):
    """A checkpoint that is not found, cannot be read or does not fit; its message says why and what to do."""


def of_file(error: OSError) -> str:
    """The line for what went wrong with a file: no permission, no space left, a file where a folder should be."""
    return f'{error.strerror or reason(error)}{f": {error.filename}" if error.filename else ""}'


def reason(error: BaseException) -> str:
    """The line of an error's message that says what happened; torch puts advice before it."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip() or type(error).__name__
    lines = text.splitlines()
    return next((line for line in lines if line.startswith('Trying to load')), lines[0])
