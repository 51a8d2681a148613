"""Whether the heads of a model are for the classes that the data have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..errors import UserError
from ..registry import type_name

#: Parts of models, by the argument that takes them, whose ``num_classes`` is not that of the data: it counts what a
#: backbone was pre-trained for, foreground, the classes of label maps beside the boxes, identities of persons.
_OTHER_PARTS = ('backbone', 'neck', 'data_preprocessor', 'rpn_head', 'semantic_head', 'reid')
#: Models with these compare with texts: their ``num_classes`` is a number of words, or says nothing.
_TEXT_PARTS = ('language_model', 'text_encoder', 'text_model')
#: mmseg's auxiliary head of two "classes", a boundary and the rest.
_BOUNDARY_HEADS = ('STDCHead',)

_THINGS, _STUFF = 'num_things_classes', 'num_stuff_classes'


def heads_with_classes(cfg: Config) -> dict[str, int]:
    """What in a config's model predicts the classes of its data, and how many of them.

    Args:
        cfg: Its ``model`` is looked at.

    Returns:
        Each ``num_classes`` that has to be the number of the data's classes, by the path of what has it. In a model
        that tells things and stuff apart, the sum of both, and the other heads' are left out: they predict things.
    """
    return {path: _number(node) for path, node in _heads(cfg.model) if not _predicts_things(cfg.model, node)}


def wrong_heads(cfg: Config, metainfo: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What in a config's model is not as the classes of the data need it.

    Args:
        cfg: Its ``model`` is looked at.
        metainfo: Of a data set: ``classes``, and for panoptic segmentation ``thing_classes``.

    Returns:
        By the keys of ``--cfg-options`` what they are, and what they should be; empty if all is as it should be, or the
        data do not name their classes.
    """
    classes = len(metainfo.get('classes') or ())
    if not classes or cfg.model.get('tracker'):  # data sets to track in list classes that they do not load
        return {}
    things = len(metainfo['thing_classes']) if metainfo.get('thing_classes') else classes
    wrong: dict[str, tuple[Any, Any]] = {}
    for path, node in _heads(cfg.model):
        if _THINGS in node:
            right = {_THINGS: things, _STUFF: classes - things}
        elif _predicts_things(cfg.model, node):
            right = dict(num_classes=things)
        else:
            right = dict(num_classes=classes)
        before, after = _number(node), sum(right.values())
        wrong |= {
            f'{path}.{key}': (node.get(key, 0), value) for key, value in right.items() if node.get(key, 0) != value
        }
        if before != after and _is_number_of_classes(node.get('out_channels'), before):
            wrong[f'{path}.out_channels'] = node['out_channels'], after
        wrong |= _wrong_weights(node, path, after)
    return wrong


def _is_number_of_classes(channels: Any, classes: int | None) -> bool:
    """Whether a head's ``out_channels`` are what mmseg's decode heads call so; MaskFormer's are those of a feature."""
    return channels is not None and channels in (classes, classes == 2 and 1)


def _wrong_weights(head: Mapping[str, Any], path: str, classes: int) -> dict[str, tuple[Any, Any]]:
    """Weights of classes in a head's losses that are for another number of them; the last may be that of "none"."""
    wrong: dict[str, tuple[Any, Any]] = {}
    for place, loss in _nodes(head, path, ()):
        weights = loss.get('class_weight')
        if isinstance(weights, (list, tuple)) and len(weights) not in (classes, classes + 1):
            is_none_last = len(weights) == (_number(head) or 0) + 1 or weights[-1:] != weights[:1]
            right = [weights[0]] * classes + list(weights[-1:]) * is_none_last if len(set(weights[:-1])) == 1 else None
            wrong[f'{place}.class_weight'] = weights, right
    return wrong


def check_heads(cfg: Config, metainfo: Mapping[str, Any]) -> None:
    """Refuse heads that are for other classes than the data have.

    Raises:
        UserError: If there are such; the message has the options that set all of them right.
    """
    wrong = wrong_heads(cfg, metainfo)
    if wrong:
        raise UserError(
            f'the data have {len(metainfo["classes"])} classes, and the config has {what_is(wrong)}',
            f'--cfg-options {options_for(wrong)}',
        )


def what_is(wrong: Mapping[str, tuple[Any, Any]]) -> str:
    """What :func:`wrong_heads` found, in words."""
    return ', '.join(
        f'{key} of {len(value)} numbers' if isinstance(value, Sequence) else f'{key}={value}'
        for key, (value, _) in wrong.items()
    )


def options_for(wrong: Mapping[str, tuple[Any, Any]]) -> str:
    """The ``--cfg-options`` that set right what :func:`wrong_heads` found."""
    return ' '.join(f'{key}={str(value).replace(" ", "")}' for key, (_, value) in wrong.items())


def _heads(model: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """What has a number of classes of the data, by its path."""
    if any(key in node for _, node in _nodes(model, 'model', ()) for key in _TEXT_PARTS):
        return []
    return [
        (path, node)
        for path, node in _nodes(model, 'model', _OTHER_PARTS)
        if _number(node) is not None and not node.get('class_agnostic') and type_name(node) not in _BOUNDARY_HEADS
    ]


def _number(node: Mapping[str, Any]) -> int | None:
    if isinstance(node.get(_THINGS), int):
        return node[_THINGS] + (node.get(_STUFF) or 0)
    return node['num_classes'] if isinstance(node.get('num_classes'), int) else None


def _predicts_things(model: Mapping[str, Any], node: Mapping[str, Any]) -> bool:
    """Whether a head's classes are the things of a model for things and stuff (mmdet's ``PanopticFPN``)."""
    return _THINGS not in node and any(other.get(_STUFF) for _, other in _nodes(model, 'model', ()))


def _nodes(node: Any, path: str, but: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, Mapping):
        yield path, node
        for key, value in node.items():
            # mmdet's panoptic models have a semantic_head that counts the data's things and stuff
            if key not in but or (isinstance(value, Mapping) and _THINGS in value):
                yield from _nodes(value, f'{path}.{key}', but)
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _nodes(value, f'{path}.{index}', but)
