"""What a backbone's ``init_cfg`` asks for, in any style of config, and loading it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import CheckpointError
from ..models.settings import is_sequence, shown
from ..registry import type_name

InitCfg = Mapping[str, Any] | Sequence[Mapping[str, Any]] | None

#: mmengine's initializer, by its name in the registry and as a class.
_PRETRAINED = ('Pretrained', 'PretrainedInit')


@dataclass(frozen=True)
class Pretrained:
    """A checkpoint that a backbone starts from.

    Attributes:
        checkpoint: As :func:`~cvt_dense.checkpoints.sources.locate` takes it.
        prefix: What the backbone's parameter names begin with in the file; None to find it.
    """

    checkpoint: str
    prefix: str | None = None


@dataclass(frozen=True)
class Initialization:
    """An ``init_cfg``, taken apart.

    Attributes:
        pretrained: Checkpoints to load, in order.
        others: Other initializers, for mmengine.
    """

    pretrained: list[Pretrained] = field(default_factory=list)
    others: list[Mapping[str, Any]] = field(default_factory=list)


def check_init_cfg(init_cfg: Any) -> None:
    """Check that an ``init_cfg`` is None, an initializer or a list of them; what they say is read later.

    Raises:
        ValueError: If it is something else.
    """
    entries = init_cfg if is_sequence(init_cfg) else [] if init_cfg is None else [init_cfg]
    for entry in entries:
        if not isinstance(entry, Mapping) or not entry.get('type'):
            raise ValueError(
                "init_cfg must be dict(type='Pretrained', checkpoint=…), another initializer with its type, a list of "
                f'them or None, got {shown(entry)}'
            )


def read_init_cfg(init_cfg: InitCfg) -> Initialization:
    """Take an ``init_cfg`` apart: None, one initializer, or a list of them; types are names or classes.

    Raises:
        CheckpointError: If a pre-trained one names no checkpoint or has a key that nothing reads.
    """
    initialization = Initialization()
    for entry in [init_cfg] if isinstance(init_cfg, Mapping) else init_cfg or []:
        if type_name(entry) in _PRETRAINED:
            _check_keys(entry)
            initialization.pretrained.append(Pretrained(str(entry['checkpoint']), entry.get('prefix')))
        else:
            initialization.others.append(entry)
    return initialization


def _check_keys(entry: Mapping[str, Any]) -> None:
    unknown = sorted(set(entry) - {'type', 'checkpoint', 'prefix', 'map_location'})
    if unknown or not isinstance(entry.get('checkpoint'), (str, os.PathLike)):
        what = f'has an unknown key {unknown[0]!r}' if unknown else f'names no checkpoint: {dict(entry)}'
        raise CheckpointError(
            f"init_cfg {what}; it takes dict(type='Pretrained', checkpoint=…) and, if needed, prefix=…"
        )
