"""What a model does with the maps of its backbone: which strides its heads believe in, and which maps nothing reads.

A model is built without memory (on PyTorch's meta device), and stand-ins for the maps of its backbone are sent through
its neck, so that what its heads get is seen and not guessed. A cure is named only after it was tried in the same way.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS
from torch import Tensor, nn

from ..registry import as_options, setting_at
from .channels import fill_in_channels, known_backbones
from .model import toolkit_scope

#: Side of the picture whose maps are sent through a neck: strides up to this one are told apart. Where it is computed,
#: it takes time.
_SIDE, _COMPUTED_SIDE = 256, 128
#: How far apart strides are that are not the same: YOLACT has those of 550 pixels over its maps' rounded sizes.
_FACTOR = 1.3
#: The attributes of heads that have strides.
_GENERATORS = ('prior_generator', 'approx_anchor_generator', 'square_anchor_generator')
#: Their settings.
_STRIDES = ('strides', 'featmap_strides', 'point_strides')

Options = dict[str, Any]


@dataclass(frozen=True)
class MapUse:
    """What a model does with the maps of its backbone.

    Attributes:
        wrong: Heads that believe in other strides than their maps have: name, those strides, and the maps'.
        unread: Positions of the backbone's maps that nothing reads.
        is_short: Whether a head has strides for more maps than it gets, which is an error when it runs.
    """

    wrong: list[tuple[str, list[float], list[float]]]
    unread: list[int]
    is_short: bool = False


def lines_of_maps(cfg: Config, path: str) -> list[str]:
    """Lines for heads that believe in other strides than their maps have, and for maps that nothing reads.

    Args:
        cfg: Config of a run; left as it is.
        path: Of the model in it that has the backbone.

    Raises:
        Exception: Of any kind, if the model cannot be built.
    """
    found = use_of_maps(cfg, path)
    lines = []
    if found.wrong:
        name, believed, real = found.wrong[0]
        others = f' (and {len(found.wrong) - 1} more such)' if len(found.wrong) > 1 else ''
        cure = _cure(cfg, path, found, lambda look: not look.wrong)
        cure = f'--cfg-options {as_options(cure)}' if cure else f'set its strides to {_shown(real)}'
        lines.append(
            f'{path}.{name} believes in strides {_shown(believed)}, and the maps that it gets have {_shown(real)}'
            f'{others}: {cure}'
        )
    if found.unread:
        cure = _cure(cfg, path, found, lambda look: not look.unread)
        if cure:  # else something counts on their number, or on their sizes
            _, maps = _backbone(cfg, path)
            strides = [maps.strides[i] for i in found.unread]
            which = f'maps of {path}.backbone at strides' if len(strides) > 1 else f'map of {path}.backbone at stride'
            lines.append(f'nothing reads the {which} {_shown(strides)}: --cfg-options {as_options(cure)}')
    return lines


def use_of_maps(cfg: Config, path: str) -> MapUse:
    """Send stand-ins for the backbone's maps through what is behind it.

    Args:
        cfg: Config of a run; left as it is.
        path: Of the model in it that has the backbone.

    Raises:
        Exception: Of any kind, if the model cannot be built.
    """
    settings = copy.deepcopy(setting_at(cfg, path))
    _without_teachers_weights(settings)
    _, maps = _backbone(cfg, path)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), toolkit_scope(cfg):
        warnings.simplefilter('ignore')  # the run's own model repeats them
        model = _built(settings)
        neck = getattr(model, 'neck', None)
        if neck is None:
            strides, unread = list(maps.strides), _unread_by_heads(model, maps)
        else:
            inputs, outputs = _through(neck, maps)
            side = inputs[0].shape[-1] * maps.strides[0]
            strides, unread = [side / output.shape[-1] for output in outputs], _unread(inputs, outputs)
    believed = list(_believed_strides(model, strides))
    wrong = [(name, given, real[: len(given)]) for name, given, real in believed if _differ(given, real)]
    return MapUse(wrong, unread, any(len(given) > len(real) for _, given, real in believed))


def _differ(given: Sequence[float], real: Sequence[float]) -> bool:
    return len(given) <= len(real) and any(not 1 / _FACTOR < a / b < _FACTOR for a, b in zip(given, real))


def _built(settings: Mapping[str, Any]) -> nn.Module:
    """A model in eval mode, on the meta device unless it needs values as it is built."""
    try:
        with torch.device('meta'):
            model = MODELS.build(copy.deepcopy(settings))
    except Exception:  # whatever a constructor makes of tensors without values
        model = MODELS.build(settings)
    model = revert_sync_batchnorm(model)
    model.eval()  # some return nothing
    return model


def _through(neck: nn.Module, maps: Any) -> tuple[list[Tensor], Sequence[Tensor]]:
    """The stand-ins, and what a neck makes of them: on the meta device or, with operators that it lacks, on a CPU."""
    try:
        inputs = _stand_ins(maps, _device_of(neck))
        return inputs, _tensors(neck(tuple(inputs)))
    except (NotImplementedError, RuntimeError):
        inputs = _stand_ins(maps, torch.device('cpu'))
        neck.to_empty(device='cpu')
        for tensor in (*neck.parameters(), *neck.buffers()):
            tensor.detach().zero_()  # offsets of deformable convolutions that are any number lead out of memory
        return inputs, _tensors(neck(tuple(inputs)))


def _device_of(module: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device('cpu'))


def _stand_ins(maps: Any, device: torch.device) -> list[Tensor]:
    side = _SIDE if device.type == 'meta' else _COMPUTED_SIDE
    return [
        torch.zeros(1, channels, side // stride, side // stride, device=device, requires_grad=True)
        for channels, stride in zip(maps.channels, maps.strides)
    ]


def _tensors(outputs: Any) -> list[Tensor]:
    """All tensors in what a module returns."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [tensor for output in outputs for tensor in _tensors(output)] if isinstance(outputs, (list, tuple)) else []


def _unread(inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[int]:
    """Inputs that no output is computed from, by the graph of the backward pass, which is not run."""
    nodes = [output.grad_fn for output in outputs if output.grad_fn is not None]
    seen, read = set(nodes), {id(output) for output in outputs}
    while nodes:
        node = nodes.pop()
        read.add(id(getattr(node, 'variable', None)))
        following = {following for following, _ in node.next_functions if following is not None} - seen
        seen |= following
        nodes += following
    return [i for i, x in enumerate(inputs) if id(x) not in read]


def _unread_by_heads(model: nn.Module, maps: Any) -> list[int]:
    """Without a neck: each head has to be run, or nothing is known."""
    known = (*_HEADS, 'roi_head', 'backbone', 'data_preprocessor')
    if any(name not in known and any(True for _ in part.parameters()) for name, part in model.named_children()):
        return []
    inputs = _stand_ins(maps, _device_of(model))
    outputs: list[Tensor] = []
    heads = [model.get_submodule(name) for name in _HEADS if isinstance(getattr(model, name, None), nn.Module)]
    try:
        for head in heads:
            last: Any = None
            for part in head if isinstance(head, nn.ModuleList) else [head]:
                # mmseg's heads in a row are given the one before's output; its auxiliary heads stand side by side.
                is_in_a_row = last is not None and head is getattr(model, 'decode_head', None)
                last = part(tuple(inputs), last) if is_in_a_row else part(tuple(inputs))
                outputs += _tensors(last)
        for _, module in _modules(model):
            outputs += inputs[: len(getattr(module, 'featmap_strides', ()))]
            index = getattr(module, 'in_index', [])  # EncNet reads the last of these, and insists on several
            outputs += [inputs[i] for i in (index if isinstance(index, (list, tuple)) else [index])]
    except Exception:  # heads that need more than maps, of anyone's
        return []
    return _unread(inputs, outputs) if outputs else []


#: Parts of models that are given maps, and nothing else.
_HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'rpn_head', 'panoptic_head', 'mask_head')


def _believed_strides(model: nn.Module, strides: Sequence[float]) -> Iterator[tuple[str, list[float], list[float]]]:
    """Parts of heads that have strides: name, those, and those of the maps that they are given, of which they may read
    the first ones alone.
    """
    for name, module in _modules(model):
        believed = [getattr(getattr(module, generator, None), 'strides', None) for generator in _GENERATORS]
        believed += [getattr(module, 'featmap_strides', None)]
        real = list(strides)
        if hasattr(module, 'resize_feats'):  # SOLO: its first and last maps get the sizes of their neighbours
            believed += [module.strides]
            real = [2 * real[0], *real[1:-1], real[-2]] if len(real) > 1 else real
        if 'semantic_roi_extractor' in name:
            real = real[getattr(getattr(_parent(model, name), 'semantic_head', None), 'fusion_level', 0) :]
        for each in believed:
            if isinstance(each, (list, tuple)) and each:
                yield name, [float(stride[0] if isinstance(stride, (list, tuple)) else stride) for stride in each], real
                break


def _modules(module: nn.Module, path: str = '') -> Iterator[tuple[str, nn.Module]]:
    """All parts of a model, but not those of models within it, which have their own backbones."""
    for name, part in module.named_children():
        at = f'{path}.{name}' if path else name
        if not hasattr(part, 'backbone') and name not in ('backbone', 'neck'):
            yield at, part
            yield from _modules(part, at)


def _parent(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.partition('.semantic_roi_extractor')[0])


# ----------------------------------------------------------------------------------------------------
# Cures
# ----------------------------------------------------------------------------------------------------


def _cure(cfg: Config, path: str, found: MapUse, is_cured: Callable[[MapUse], bool]) -> Options | None:
    """Overrides after which a fault is gone, and best any other; None if none of those that may do it does."""
    second = None
    for options in _candidates(cfg, path, found):
        trial = Config(dict(model=copy.deepcopy(cfg.model), default_scope=cfg.get('default_scope')))
        try:
            trial.merge_from_dict(options)
            fill_in_channels(trial)
            look = use_of_maps(trial, path)
        except Exception:  # what cannot be built is no cure
            continue
        if not look.wrong and not look.unread and not look.is_short:
            return options
        if second is None and is_cured(look) and not look.is_short:
            second = options
    return second


def _candidates(cfg: Config, path: str, found: MapUse) -> Iterator[Options]:
    settings, (backbone, maps) = setting_at(cfg, path), _backbone(cfg, path)
    indices = list(backbone.get('out_indices', range(len(maps.strides))))
    neck, at = settings.get('neck'), f'{path}.neck'
    if isinstance(neck, (list, tuple)) and neck:
        neck, at = neck[0], f'{at}.0'
    all_levels = {
        f'{at}.{key}': every
        for key, every in (('start_level', 0), ('end_level', -1))
        if (neck or {}).get(key, every) != every
    }
    choices = [[i + by for i in indices] for by in (1, -1, 2, -2)]
    choices += [[index for position, index in enumerate(indices) if position not in found.unread], indices[1:]]
    for chosen in [indices, *choices]:
        if not chosen or not all(0 <= i < maps.most for i in chosen):
            continue
        options: Options = {} if chosen == indices else {f'{path}.backbone.out_indices': chosen}
        if len(chosen) != len(indices):
            others = _for_fewer(settings, path, neck, at, [indices.index(i) for i in chosen], maps)
            if others is None:
                continue
            options |= others
        for levels in ({}, all_levels) if all_levels else ({},):
            if options | levels:
                yield options | levels
    # Other strides for the heads are the last resort: scales of anchors, ranges of sizes go with them.
    options = {}
    for name, believed, real in found.wrong:
        for key, given in _stride_settings(settings, path):
            if [float(s[0] if isinstance(s, (list, tuple)) else s) for s in given] == believed:
                options[key] = [int(stride) for stride in real]
        if not options:
            options[f'{path}.{name}.strides'] = [int(stride) for stride in real]
    if options:
        yield options


def _for_fewer(
    settings: Mapping[str, Any], path: str, neck: Any, at: str, kept: Sequence[int], maps: Any
) -> Options | None:
    """What has to change besides where a backbone returns fewer maps, of which the positions are given.

    None if a head names one of the others.
    """
    if neck:
        several = isinstance(neck.get('in_channels'), (list, tuple))
        return {f'{at}.in_channels': [maps.channels[i] for i in kept]} if several else {}
    options: Options = {}
    for name in ('decode_head', 'auxiliary_head'):
        heads = settings.get(name)
        several = isinstance(heads, (list, tuple))
        for number, head in enumerate(heads if several else [heads]):
            where = f'{path}.{name}.{number}' if several else f'{path}.{name}'
            if isinstance(head, Mapping) and 'kernel_generate_head' in head:
                head, where = head['kernel_generate_head'], f'{where}.kernel_generate_head'
            index = head.get('in_index') if isinstance(head, Mapping) else None
            if index is not None:
                count = len(maps.strides)
                named = [i % count for i in (index if isinstance(index, (list, tuple)) else [index])]
                if not set(named) <= set(kept):
                    return None
                new = [kept.index(i) for i in named]
                options[f'{where}.in_index'] = new if isinstance(index, (list, tuple)) else new[0]
    return options


def _stride_settings(node: Any, path: str) -> Iterator[tuple[str, Sequence[Any]]]:
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key in _STRIDES and isinstance(value, (list, tuple)):
                yield f'{path}.{key}', value
            elif key not in ('backbone', 'neck'):
                yield from _stride_settings(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _stride_settings(value, f'{path}.{index}')


def _backbone(cfg: Config, path: str) -> tuple[Mapping[str, Any], Any]:
    """The settings of the backbone of the model at a path, and the maps that it returns."""
    return next((backbone, maps) for place, backbone, maps in known_backbones(cfg) if place == path)


def _without_teachers_weights(node: Any) -> None:
    """Models that distil load their teacher's as they are built."""
    if isinstance(node, dict):
        if 'teacher_ckpt' in node:
            node['teacher_ckpt'] = None
        for value in node.values():
            _without_teachers_weights(value)


def _shown(strides: Iterable[float]) -> str:
    return ', '.join(f'{stride:g}' for stride in strides)
