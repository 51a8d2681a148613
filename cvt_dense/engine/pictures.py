"""Whether pictures reach a pre-trained backbone as those that it was trained on: RGB, with ImageNet's numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, TRANSFORMS

from ..registry import as_options, pretrained_sources, setting_at, type_name
from .model import toolkit_scope

#: What pictures of ImageNet's are normalised with, in the order RGB, for the published checkpoints.
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
#: By how much a normalised picture may differ: other roundings of these numbers are within it.
_TOLERANCE = 0.1


def lines_of_pictures(cfg: Config, path: str) -> list[str]:
    """A line for pictures that are not RGB with ImageNet's mean and standard deviation, for pre-trained weights.

    Args:
        cfg: Config of a run; left as it is.
        path: Of the model in it that has the backbone.

    Raises:
        Exception: Of any kind, if what prepares the pictures cannot be built or does something else besides.
    """
    backbone = setting_at(cfg, path)['backbone']
    is_pretrained = any(pretrained_sources(settings) for settings in (backbone, setting_at(cfg, path), cfg.model))
    if backbone.get('in_channels', 3) != 3 or not (is_pretrained or cfg.get('load_from')):
        return []
    at, preprocessor = _preprocessor(cfg, path)
    steps = list(_steps(cfg.get('train_dataloader') or {}, 'Normalize'))[:1]
    with toolkit_scope(cfg):
        probe = _probe(preprocessor, steps)
        if _is_right(probe):
            return []
        cure = _cure_of_pictures(preprocessor, steps, at, cfg.get('default_scope'))
    weights = 'its pre-trained weights' if is_pretrained else 'load_from, if it goes back to published weights,'
    line = f'pictures reach {path}.backbone as {_described(probe)}, and {weights} learned from RGB with'
    return [f'{line} those of ImageNet: {cure}']


def _preprocessor(cfg: Config, path: str) -> tuple[str, Any]:
    """The settings of what prepares pictures for a model, and their path: those of the outermost that has them."""
    at, settings = 'model.data_preprocessor', cfg.model.get('data_preprocessor')
    if settings is None and cfg.get('data_preprocessor') is not None:
        at, settings = 'data_preprocessor', cfg.data_preprocessor
    if settings is None and path != 'model':
        at, settings = f'{path}.data_preprocessor', setting_at(cfg, path).get('data_preprocessor')
    if settings is not None and isinstance(settings.get('data_preprocessor'), Mapping):  # one for several branches
        at, settings = f'{at}.data_preprocessor', settings['data_preprocessor']
    return at, settings


def _steps(node: Any, name: str) -> Iterator[Mapping[str, Any]]:
    """Settings of a type, anywhere below."""
    if isinstance(node, Mapping):
        if type_name(node) == name:
            yield node
        for value in node.values():
            yield from _steps(value, name)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _steps(value, name)


def _probe(preprocessor: Any, steps: Iterable[Mapping[str, Any]]) -> np.ndarray:
    """What becomes of pictures: ``(4, 3)``, of a black, a blue, a green and a red one, as OpenCV reads them."""
    pictures = np.zeros((4, 32, 32, 3), np.float32)
    for channel in range(3):
        pictures[channel + 1, :, :, channel] = 255
    arrays = list(pictures)
    for step in steps:
        transform = TRANSFORMS.build(copy.deepcopy(dict(step)))
        arrays = [transform(dict(img=array))['img'] for array in arrays]
    tensors = [torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))) for array in arrays]
    if preprocessor is None:
        inputs: Any = torch.stack(tensors)
    else:
        prepare = MODELS.build(copy.deepcopy(ConfigDict(preprocessor)))
        inputs = prepare(dict(inputs=tensors, data_samples=None), training=False)['inputs']
    return inputs[:, :, 0, 0].numpy()


def _is_right(probe: np.ndarray) -> bool:
    mean, std = np.array(MEAN), np.array(STD)
    rgb = np.array([[0, 0, 0], [0, 0, 255], [0, 255, 0], [255, 0, 0]])
    return bool((np.abs(probe - (rgb - mean) / std) < _TOLERANCE).all())


def _described(probe: np.ndarray) -> str:
    """The order of channels, mean and standard deviation that pictures came to have."""
    response = probe[1:] - probe[0]  # to blue, green and red, in each channel
    order = response.argmax(0)
    std = 255 / response.max(0)
    means, stds = ([float(f'{value:.4g}') + 0.0 for value in values] for values in (-probe[0] * std, std))
    return f'{"".join("BGR"[i] for i in order)} with mean {means} and std {stds}'


def _cure_of_pictures(preprocessor: Any, steps: Sequence[Mapping[str, Any]], at: str, scope: str | None) -> str:
    """What sets pictures right, after it was tried."""
    numbers = dict(mean=list(MEAN), std=list(STD))
    if preprocessor is None:
        kind = 'SegDataPreProcessor' if scope == 'mmseg' else 'DetDataPreprocessor'
        return f'{at}=dict(type={kind!r}, mean={numbers["mean"]}, std={numbers["std"]}, bgr_to_rgb=True)'
    none = dict(mean=None, std=None)
    changes = [
        values | order
        for values in ({}, numbers, none)
        for order in ({}, dict(bgr_to_rgb=True), dict(bgr_to_rgb=False), dict(rgb_to_bgr=False, bgr_to_rgb=False))
    ]
    for without, given in (('', steps), ('leave Normalize out of the pipelines, with ', [])):
        for change in changes:
            try:
                is_right = _is_right(_probe({**preprocessor, **change}, given))
            except (AssertionError, TypeError, ValueError, RuntimeError):  # settings that do not go together
                continue
            if is_right:
                options = as_options({f'{at}.{key}': value for key, value in change.items()})
                return f'{without}--cfg-options {options}' if options else without.removesuffix(', with ')
    return f'mean={numbers["mean"]}, std={numbers["std"]} and RGB'
