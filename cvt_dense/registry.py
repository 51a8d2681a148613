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


def each_evaluator(evaluators: Any) -> list[Mapping[str, Any]]:
    """The evaluators of a config, which has one, or a list of them, or an ``Evaluator`` of some, or none."""
    if isinstance(evaluators, Mapping) and 'metrics' in evaluators:
        evaluators = evaluators['metrics']
    given = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    return [evaluator for evaluator in given if isinstance(evaluator, Mapping)]


def pretrained_sources(settings: Mapping[str, Any] | None) -> list[Any]:
    """The checkpoints that the ``init_cfg`` of a model's part names: one initializer, a list of them, or none."""
    given = (settings or {}).get('init_cfg')
    entries = given if isinstance(given, (list, tuple)) else [given]
    pretrained = ('Pretrained', 'PretrainedInit')  # its name in mmengine's registry, and as a class
    return [e.get('checkpoint') for e in entries if isinstance(e, Mapping) and type_name(e) in pretrained]


def setting_at(settings: Any, path: str) -> Any:
    """What a dotted path leads to in a config, where numbers are places in lists."""
    for part in path.split('.'):
        settings = settings[int(part)] if isinstance(settings, (list, tuple)) else settings[part]
    return settings


def as_options(settings: Mapping[str, Any]) -> str:
    """Settings by their dotted paths as ``--cfg-options`` takes them."""
    return ' '.join(f'{path}={str(value).replace(" ", "")}' for path, value in settings.items())
