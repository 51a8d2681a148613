"""What a config says of registered things, in whichever style it says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def module_name(settings: Mapping[str, Any] | None) -> str:
    """The module or scope in a config's ``type``; empty for a name without one.

    Args:
        settings: A part of a config; None counts as one without a type.
    """
    kind = (settings or {}).get('type') or ''
    return kind.rpartition('.')[0] if isinstance(kind, str) else kind.__module__


def type_name(settings: Mapping[str, Any] | None, default: str = '') -> str:
    """The name in a config's ``type``, without its scope: a string, or the class itself as new-style configs have it.

    Args:
        settings: A part of a config; None counts as one without a type.
        default: The name where no type is given.
    """
    kind = (settings or {}).get('type')
    if kind is None:
        return default
    return kind.rpartition('.')[2] if isinstance(kind, str) else kind.__name__
