"""What is not known to be computed as mmdet computes it is refused: in one line, which names the setting."""

from __future__ import annotations

from typing import Any, NoReturn

from ...errors import UserError


def refuse(setting: str, known: str) -> NoReturn:
    """Refuse to export a detector.

    Args:
        setting: What is not known, as the config has it.
        known: What is instead, with its verb.

    Raises:
        UserError: Always.
    """
    raise UserError(f'a whole detector with {setting} is not exported, {known}: change it, or take --part neck')


def check_methods(part: Any, owner: type, *names: str, setting: str) -> None:
    """Hold a part of a detector to be of a known kind: subclasses may change what is not on the way to predictions.

    Args:
        part: The part.
        owner: The class whose methods are known.
        names: Of those methods.
        setting: Where the config has the part.

    Raises:
        UserError: If it has another method of that name, or none.
    """
    for name in names:
        if getattr(type(part), name, None) is not getattr(owner, name):
            refuse(f'{setting}.type={type(part).__name__!r}', f'one that predicts as {owner.__name__} does is')
