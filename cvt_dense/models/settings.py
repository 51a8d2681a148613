"""Read settings as they are meant: what is of another kind is refused in one line, and never taken for something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any


def is_integer(value: Any) -> bool:
    """Whether a setting is a whole number, NumPy's too; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a setting is a finite number, NumPy's too; a bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_sequence(value: Any) -> bool:
    """Whether a setting is a list, a tuple or the like; a string is not."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def integer(value: Any, name: str, least: int = 1) -> int:
    """Take a setting for a whole number.

    Raises:
        ValueError: If it is none, or less than ``least``; the message gives its ``name``.
    """
    if not is_integer(value) or value < least:
        kind = {0: 'an integer of at least 0', 1: 'a positive integer'}[least]
        raise ValueError(f'{name} must be {kind}, got {shown(value)}')
    return int(value)


def boolean(value: Any, name: str) -> bool:
    """Take a setting for a truth value.

    Raises:
        ValueError: If it is none, as the string ``'False'``, which Python takes for true; the message gives its
            ``name``.
    """
    if not isinstance(value, bool):
        raise ValueError(f'{name} must be True or False, got {shown(value)}')
    return value


def image_size(value: Any, least: int, name: str) -> int | tuple[int, int]:
    """Take a setting for the side of an image, or its height and width.

    Raises:
        ValueError: If it is neither, or less than ``least``; the message gives its ``name``.
    """
    sides = tuple(value) if is_sequence(value) else (value, value)
    if len(sides) != 2 or any(not is_integer(side) or side < least for side in sides):
        raise ValueError(
            f'{name} must be the side of an image, or its (height, width), of at least {least} pixels, '
            f'got {shown(value)}'
        )
    return (int(sides[0]), int(sides[1])) if is_sequence(value) else int(value)


def height_and_width(size: int | tuple[int, int]) -> tuple[int, int]:
    """Both sides of what :func:`image_size` has taken."""
    return (size, size) if isinstance(size, int) else size


def shown(value: Any, longest: int = 80) -> str:
    """A value in a message: in one line, and not too long."""
    text = ' '.join(repr(value).split())
    return text if len(text) <= longest else f'{text[:longest]}…'
