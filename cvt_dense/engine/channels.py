"""Fill in the channels of what reads a backbone's maps: a config for another backbone takes CvT or CMT in one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from inspect import Parameter, signature
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from ..registry import module_name, type_name

#: Necks that list the last map first.
_LAST_FIRST = ('YOLOV3Neck',)
#: Necks that read the last map alone, with a number for ``in_channels``.
_LAST_ALONE = ('DilatedEncoder', 'CTResNetNeck')
_TOOLKITS = ('mmdet', 'mmseg')


@dataclass
class _Backbone:
    """A backbone in a config, and what is said of the parts that read its maps.

    Attributes:
        name: Its ``type``.
        path: Of its settings.
        channels: Of the maps that it returns.
        most: How many it could return.
        scope: The toolkit of the config, None if it is not known.
        lines: What was filled in, or cannot be.
    """

    name: str
    path: str
    channels: tuple[int, ...]
    most: int
    scope: str | None
    lines: list[str] = field(default_factory=list)

    def fill(self, node: Any, path: str, key: str, right: int | Sequence[int], which: str = 'maps') -> None:
        """Write channels into a part's settings and say so, unless they are there.

        Args:
            node: The part's settings.
            path: Theirs.
            key: The setting.
            right: What it has to be.
            which: What has these channels, in words.
        """
        given = node.get(key)
        if isinstance(right, int):
            fits = given == right
        else:
            fits = isinstance(given, (list, tuple)) and list(given) == list(right)
            right = type(given)(right) if type(given) in (list, tuple) else right  # a neck insists on a tuple
        if not fits:
            node[key] = right
            instead = '' if given is None else f', instead of {given}'
            self.lines.append(f"{path}.{key}: {right}, the channels of {self.name}'s {which}{instead}")

    def counts_differ(self, path: str, count: int) -> None:
        """Say that a part is for another number of maps, and how to get that number."""
        have = f'{path} is for {count} maps, and {self.name} returns {len(self.channels)}'
        if count <= self.most:
            cure = f'{self.path}.out_indices={tuple(range(self.most - count, self.most))} gives {count}'
        else:
            cure = f'it has {self.most} at most, so write {path} for these'
        self.lines.append(f'{have}: {cure}')


def fill_in_channels(cfg: Config | Mapping[str, Any]) -> list[str]:
    """Fill in ``in_channels`` of the necks and heads that read the maps of a backbone that knows its own (CvT, CMT).

    Where it is missing, None or not what the backbone returns, which could only fail, it is replaced; what fits is left
    as it is. So are parts that do not say which maps they read.

    Args:
        cfg: A config, or the settings of its model; changed in place. Models within models are looked through.

    Returns:
        A line for each setting that was replaced, and for each number of maps that differs and what changes it. Empty
        if all fits, or the model has no such backbone.
    """
    is_whole = 'model' in cfg
    scope = cfg.get('default_scope') if is_whole else None
    lines: list[str] = []
    models = dict(_models(cfg.get('model') if is_whole else cfg, 'model'))
    for path, settings, maps in known_backbones(cfg):
        model = models[path]
        backbone = _Backbone(type_name(settings), f'{path}.backbone', maps.channels, maps.most, scope)
        neck, name = model.get('neck'), f'{path}.neck'
        if neck and isinstance(neck, (list, tuple)):
            neck, name = neck[0], f'{name}.0'
        if isinstance(neck, Mapping):
            _fill_neck(neck, name, backbone)
            _fill_what_is_behind(model, path, neck, backbone)
        elif not neck:
            _fill_heads(model, path, backbone)
        lines += backbone.lines
    return lines


def known_backbones(cfg: Config | Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The backbones in a config whose classes say what they return (``returned_maps``).

    Args:
        cfg: As of :func:`fill_in_channels`.

    Yields:
        The path of the model that has it, its settings, and the maps that it returns with them; backbones with wrong
        settings, which cannot be built, are left out.
    """
    for path, model in _models(cfg.get('model') if 'model' in cfg else cfg, 'model'):
        kind = _registered(model['backbone'])
        if hasattr(kind, 'returned_maps'):
            settings = {key: value for key, value in model['backbone'].items() if key != 'type'}
            with suppress(ValueError, TypeError):
                yield path, model['backbone'], kind.returned_maps(**settings)


def _models(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """All settings that have a ``backbone``, with their paths."""
    if isinstance(node, Mapping):
        if isinstance(node.get('backbone'), Mapping):
            yield path, node
        for key in list(node):
            yield from _models(node[key], f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _models(value, f'{path}.{index}')


def _fill_neck(neck: Any, path: str, backbone: _Backbone) -> None:
    given, channels = neck.get('in_channels'), backbone.channels
    name = type_name(neck)
    if isinstance(given, (list, tuple)):
        if len(given) != len(channels):
            backbone.counts_differ(f'{path}.in_channels', len(given))
            return
        right = channels[::-1] if _is_last_first(neck, given, backbone.scope) else channels
        before = neck.get('out_channels')
        backbone.fill(neck, path, 'in_channels', right)
        if name == 'SSDNeck' and isinstance(before, (list, tuple)):  # it hands the maps on before its own
            backbone.fill(neck, path, 'out_channels', (*right, *before[len(given) :]), 'maps and its own')
    elif name in _LAST_ALONE or isinstance(given, int):
        backbone.fill(neck, path, 'in_channels', channels[-1], 'last map')
    elif _takes_in_channels(neck, backbone.scope):
        right = channels[::-1] if name in _LAST_FIRST else channels
        backbone.fill(neck, path, 'in_channels', tuple(right) if name == 'JPU' else list(right))


def _is_last_first(neck: Any, given: Sequence[int], scope: str | None) -> bool:
    """Whether a neck lists its last map first, as its name or, in one that no toolkit brings, its numbers say."""
    if type_name(neck) in _LAST_FIRST:
        return True
    is_falling = len(given) > 1 and isinstance(given[0], int) and isinstance(given[-1], int) and given[0] > given[-1]
    return is_falling and getattr(_class_of(neck, scope), '__module__', '').partition('.')[0] not in _TOOLKITS


def _fill_what_is_behind(model: Any, path: str, neck: Any, backbone: _Backbone) -> None:
    """Heads behind a neck that hands maps of the backbone on."""
    if type_name(neck) == 'JPU' and len(neck['in_channels']) == len(backbone.channels):
        channels = backbone.channels
        start, end = neck.get('start_level', 0), neck.get('end_level', -1)
        handed_on = list(channels[start : (len(channels) if end == -1 else end) - 1])
        for name, head in _each(model.get('auxiliary_head'), f'{path}.auxiliary_head'):
            index = head.get('in_index', -1)
            if isinstance(index, int) and 0 <= index < len(handed_on):
                backbone.fill(head, name, 'in_channels', handed_on[index], f'map that the neck hands on as {index}')
    elif type_name(neck) == 'SSDNeck':
        head = model.get('bbox_head')
        given, right = (head or {}).get('in_channels'), neck.get('out_channels')
        if isinstance(given, (list, tuple)) and isinstance(right, (list, tuple)) and len(given) == len(right):
            backbone.fill(head, f'{path}.bbox_head', 'in_channels', right, 'maps and the others of the neck')


def _fill_heads(model: Any, path: str, backbone: _Backbone) -> None:
    """Heads of a model without a neck."""
    for name in ('decode_head', 'auxiliary_head'):
        for at, head in _each(model.get(name), f'{path}.{name}'):
            _fill_indexed(head, at, backbone)
    for name in ('panoptic_head', 'bbox_head', 'rpn_head', 'mask_head'):
        for at, head in _each(model.get(name), f'{path}.{name}'):
            _fill_all(head, at, backbone)
    if isinstance(model.get('roi_head'), Mapping):
        _fill_roi_head(model['roi_head'], f'{path}.roi_head', backbone)


def _fill_indexed(head: Any, path: str, backbone: _Backbone) -> None:
    """A head of mmseg, which reads the maps of its ``in_index``, or one of mmdet's in its place, which reads all."""
    if isinstance(head.get('kernel_generate_head'), Mapping):  # K-Net's, before its updates
        _fill_indexed(head['kernel_generate_head'], f'{path}.kernel_generate_head', backbone)
        return
    if not _takes_in_channels(head, backbone.scope):
        return
    channels, given, index = backbone.channels, head.get('in_channels'), head.get('in_index')
    if index is None and isinstance(given, (list, tuple)):
        _fill_all(head, path, backbone)
        return
    index = -1 if index is None else index
    several = isinstance(index, (list, tuple))
    indices = list(index) if several else [index]
    if not all(isinstance(i, int) for i in indices):
        return
    beyond = [i for i in indices if not -len(channels) <= i < len(channels)]
    if beyond:
        _beyond(f'{path}.in_index', index, max(i + 1 if i >= 0 else -i for i in beyond), backbone)
        return
    if several:
        backbone.fill(head, path, 'in_channels', [channels[i] for i in indices], 'maps by in_index')
    else:
        backbone.fill(head, path, 'in_channels', channels[index], f'map {index % len(channels)}, counted from 0')
    if head.get('c1_in_channels'):  # DeepLabV3+ reads the first map besides
        backbone.fill(head, path, 'c1_in_channels', channels[0], 'first map')


def _beyond(path: str, index: Any, count: int, backbone: _Backbone) -> None:
    cures = [f'{path}=0'] * (len(backbone.channels) == 1 and isinstance(index, int))
    if count <= backbone.most:
        cures.append(f'{backbone.path}.out_indices={tuple(range(backbone.most - count, backbone.most))}')
    number = len(backbone.channels)
    have = f'{path}: {index} is beyond the {number} map{"s" * (number > 1)} that {backbone.name} returns'
    cure = ' or '.join(cures) or f'it has {backbone.most} at most, counted from 0'
    backbone.lines.append(f'{have}: {cure}')


def _fill_all(head: Any, path: str, backbone: _Backbone) -> None:
    """A head that reads all maps: a list of their channels, or, for one that is slid over all, the number of all."""
    channels, given = backbone.channels, head.get('in_channels')
    if isinstance(given, (list, tuple)):
        if len(given) != len(channels):
            backbone.counts_differ(f'{path}.in_channels', len(given))
        else:
            backbone.fill(head, path, 'in_channels', channels)
    elif not _takes_in_channels(head, backbone.scope):
        return
    elif given is None and 'panoptic_head' in path:
        backbone.fill(head, path, 'in_channels', list(channels))
    elif len(set(channels)) == 1:
        backbone.fill(head, path, 'in_channels', channels[0])
    else:
        _needs_one_map(f'{path}.in_channels', backbone)


def _needs_one_map(path: str, backbone: _Backbone) -> None:
    line = (
        f'{path}: {backbone.name} returns maps of {", ".join(map(str, backbone.channels))} channels, and no neck makes '
        f'them alike: {backbone.path}.out_indices=({backbone.most - 2},) gives one map'
    )
    backbone.lines.append(line)


def _fill_roi_head(roi_head: Any, path: str, backbone: _Backbone) -> None:
    """RoI heads on the backbone's map; what is behind a ``shared_head`` reads that one's."""
    if len(set(backbone.channels)) > 1:
        return
    for kind in ('bbox', 'mask'):
        for name, extractor in _each(roi_head.get(f'{kind}_roi_extractor'), f'{path}.{kind}_roi_extractor'):
            backbone.fill(extractor, name, 'out_channels', backbone.channels[0], 'map')
        if not roi_head.get('shared_head'):
            for name, head in _each(roi_head.get(f'{kind}_head'), f'{path}.{kind}_head'):
                if _takes_in_channels(head, backbone.scope):
                    backbone.fill(head, name, 'in_channels', backbone.channels[0], 'map')


def _each(parts: Any, path: str) -> Iterator[tuple[str, Any]]:
    """One part's settings or those of a list, with their paths."""
    if isinstance(parts, Mapping):
        yield path, parts
    elif isinstance(parts, (list, tuple)):
        for index, part in enumerate(parts):
            if isinstance(part, Mapping):
                yield f'{path}.{index}', part


def _takes_in_channels(part: Mapping[str, Any], scope: str | None) -> bool:
    """Whether a part has ``in_channels``: its settings or, where they do not name it, its class says so."""
    if 'in_channels' in part:
        return True
    kind = _class_of(part, scope)
    for base in getattr(kind, '__mro__', ()):
        parameters = signature(base.__init__).parameters if '__init__' in vars(base) else {}
        if 'in_channels' in parameters:
            return True
        if parameters and not any(p.kind == Parameter.VAR_KEYWORD for p in parameters.values()):
            return False
    return False


def _class_of(settings: Mapping[str, Any], scope: str | None) -> Any:
    """The class of a part, None if it is not found; a toolkit that is named, if only by the config, is imported."""
    prefix = module_name(settings).partition('.')[0]
    packages = [package for package in (prefix, scope) if package in _TOOLKITS and find_spec(package)]
    for package in packages:
        import_module(f'{package}.models')
    return _registered(settings, *packages[:1])


def _registered(settings: Mapping[str, Any], scope: str = '') -> Any:
    """The class of a part as far as it is imported, None if it is not; of several of a name the one in a scope."""
    kind = settings.get('type')
    if not isinstance(kind, str):
        return kind
    name = type_name(settings)
    registries = (MODELS, *sorted(MODELS.children.values(), key=lambda child: child.scope != scope))
    return next((registry.module_dict[name] for registry in registries if name in registry.module_dict), None)
