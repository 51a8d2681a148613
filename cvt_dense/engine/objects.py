"""Whether a detector's settings fit the objects of its data: their sides as the network sees them, their number."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import TASK_UTILS

from ..registry import as_options, setting_at
from .model import toolkit_scope

#: Images whose objects are measured, through the pipeline of training; and those whose objects are counted.
MEASURED, COUNTED = 50, 2000
#: Where a detector's limits of detections in an image are.
_LIMITS = ('model.test_cfg.rcnn.max_per_img', 'model.test_cfg.max_per_img')
_GENERATORS = ('model.rpn_head.anchor_generator', 'model.bbox_head.anchor_generator')


@dataclass(frozen=True)
class Objects:
    """What a sample of a data set's objects is like.

    Attributes:
        sides: ``(N,)``, square roots of the boxes' areas in pixels, after the pipeline of training.
        most: The largest number of objects in one image, those that evaluation ignores not counted.
    """

    sides: np.ndarray
    most: int

    @property
    def quarter(self) -> float:
        """The side below which a quarter of the objects are, in pixels."""
        return float(np.quantile(self.sides, 0.25))

    def __str__(self) -> str:
        """What the sample is like, in words."""
        return (
            f'sides of {np.median(self.sides):.0f} pixels as the network sees them, in the median, and a quarter below '
            f'{self.quarter:.0f}; up to {self.most} in an image'
        )


def objects_of(dataset: Any) -> Objects | None:
    """Look at a sample of a detector's data.

    Args:
        dataset: Of mmdet's, loaded.

    Returns:
        None if its samples have no boxes.
    """
    sides: list[np.ndarray] = []
    with _random_numbers_kept():
        for index in _spread(len(dataset), MEASURED):
            sample = dataset[index]
            found = getattr(sample.get('data_samples') if isinstance(sample, Mapping) else None, 'gt_instances', None)
            if found is None or 'bboxes' not in found:
                return None
            boxes = torch.as_tensor(getattr(found.bboxes, 'tensor', found.bboxes)).reshape(-1, 4).numpy()
            sides.append(np.sqrt(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)))
    counts = [
        sum(not entry.get('ignore_flag') for entry in dataset.get_data_info(index).get('instances') or ())
        for index in _spread(len(dataset), COUNTED)
    ]
    together = np.concatenate(sides) if sides else np.zeros(0)
    return Objects(together, max(counts, default=0)) if len(together) else None


def lines_of_objects(cfg: Config, objects: Objects) -> list[str]:
    """What in a detector's settings does not fit its objects.

    Args:
        cfg: Config of a run; left as it is.
        objects: Those of its training data.

    Returns:
        A line for each, with the setting that cures it.
    """
    return [*_of_anchors(cfg, objects), *_of_limits(cfg, objects)]


def _of_anchors(cfg: Config, objects: Objects) -> Iterator[str]:
    for path in _GENERATORS:
        settings = _found(cfg, path)
        if settings is None:
            continue
        with toolkit_scope(cfg):
            smallest = _smallest_anchor(settings)
        if objects.quarter >= smallest / 2:
            continue
        factor = 2.0 ** np.floor(np.log2(objects.quarter / smallest) + 0.5)
        key = 'octave_base_scale' if settings.get('octave_base_scale') else 'scales'
        given = settings[key]
        scales = [max(1, float(f'{scale * factor:.3g}')) for scale in (given if isinstance(given, list) else [given])]
        scales = [int(scale) if scale == int(scale) else scale for scale in scales]
        value = scales if isinstance(given, list) else scales[0]
        yield (
            f'a quarter of the objects have sides below {objects.quarter:.0f} pixels as the network sees them, and the '
            f'smallest anchors {smallest:.0f}: --cfg-options {as_options({f"{path}.{key}": value})}, or larger images'
        )


def _smallest_anchor(settings: Mapping[str, Any]) -> float:
    """The side of the smallest square anchor, in pixels of the network's images."""
    generator = TASK_UTILS.build(dict(settings))
    areas = [(base[:, 2:] - base[:, :2]).prod(dim=1).min() for base in generator.base_anchors]
    return float(min(areas)) ** 0.5


def _of_limits(cfg: Config, objects: Objects) -> Iterator[str]:
    for path in _LIMITS:
        limit = _found(cfg, path)
        if limit and objects.most > limit:
            cure = as_options({path: -(-objects.most * 3 // 2 // 50) * 50})
            yield f'an image has {objects.most} objects, and {path} lets {limit} be found: --cfg-options {cure}'


def _found(cfg: Config, path: str) -> Any:
    """The value at a path of a config; None if there is none."""
    try:
        return setting_at(cfg, path)
    except (AttributeError, KeyError, TypeError):
        return None


def _spread(length: int, count: int) -> Sequence[int]:
    """Up to ``count`` places, spread evenly."""
    return sorted({i * length // count for i in range(count)}) if length else []


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    """Leave the random numbers that come next as they are: pipelines draw from all three."""
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
