"""The errors that a user can act on: each is one line that says what is wrong and what to do."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user has to fix; the message is one line that says what and how."""

    def __init__(self, message: str) -> None:
        # A DataLoader raises what its workers raise with a stack trace for a message, whose last line is the error.
        last = message.strip().splitlines()[-1]
        super().__init__(last.removeprefix(f'{type(self).__module__}.{type(self).__qualname__}: '))


class CheckpointError(UserError):
    """A checkpoint that is not found, cannot be read or does not fit; its message says why and what to do."""


def reason(error: BaseException) -> str:
    """The line of an error's message that says what happened; torch puts advice before it."""
    text = str(error).rpartition('WeightsUnpickler error:')[2].strip() or type(error).__name__
    lines = text.splitlines()
    return next((line for line in lines if line.startswith('Trying to load')), lines[0])
