"""Boxes as graphs hold them: decoded, clipped, ranked and suppressed in operators that every format has.

They are ``(n, 4)`` floats x1 y1 x2 y2 in pixels. Each function gives what mmdet's gives, but without a decision that
depends on how many boxes there are: none is as good a number as any.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from torchvision.ops import nms

from .support import check_methods, refuse

#: Sides change by at most this factor; the default of mmdet's ``decode``, which no head overrides.
_MAX_LOG_RATIO = abs(math.log(16 / 1000))
_NMS_KEYS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}

#: Height and width of the image, in pixels.
Size = tuple[int, int]


class Decoder:
    """Boxes from the differences that a head predicts to those it started from.

    Args:
        coder: The head's.
        setting: Where the config has it.

    Raises:
        UserError: If it is of another kind than ``DeltaXYWHBBoxCoder``.
    """

    def __init__(self, coder: Any, setting: str) -> None:
        check_methods(coder, DeltaXYWHBBoxCoder, 'decode', setting=setting)
        self.means, self.stds = list(coder.means), list(coder.stds)
        self.clips, self.center_clamp = coder.clip_border, coder.ctr_clamp if coder.add_ctr_clamp else None

    def __call__(self, boxes: torch.Tensor, deltas: torch.Tensor, size: Size) -> torch.Tensor:
        """``(n, 4)`` boxes of as many others and ``(n, 4)`` differences, within an image of ``size``."""
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        sides = boxes[:, 2:] - boxes[:, :2]
        shift, growth = sides * deltas[:, :2], deltas[:, 2:]
        if self.center_clamp is None:
            growth = growth.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
        else:
            shift, growth = shift.clamp(-self.center_clamp, self.center_clamp), growth.clamp(max=_MAX_LOG_RATIO)
        center = (boxes[:, :2] + boxes[:, 2:]) * 0.5 + shift
        half = sides * growth.exp() * 0.5
        decoded = torch.cat((center - half, center + half), dim=1)
        return clipped(decoded, size) if self.clips else decoded


def clipped(boxes: torch.Tensor, size: Size) -> torch.Tensor:
    """Boxes without what is outside of the image."""
    height, width = size
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack((x1.clamp(0, width), y1.clamp(0, height), x2.clamp(0, width), y2.clamp(0, height)), dim=1)


def highest(scores: torch.Tensor, limit: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The highest of ``(n,)`` scores, at most ``limit``, and their places."""
    return torch.topk(scores, torch.sym_min(limit, scores.shape[0]))


def are_larger(boxes: torch.Tensor, side: float) -> torch.Tensor:
    """``(n,)`` bool: boxes whose sides are longer than so many pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) > side).all(1)


@dataclass(frozen=True)
class Suppression:
    """Non-maximum suppression among boxes of one group, such as a class or a level.

    Attributes:
        iou: Boxes that overlap a better one by more are suppressed.
        limit: The most boxes that are kept; None for all.
        across_groups: Whether the groups do not matter.
    """

    iou: float
    limit: int | None
    across_groups: bool

    @classmethod
    def of(cls, test_cfg: Mapping[str, Any], setting: str, unlimited: bool = False) -> Suppression:
        """What a config's ``test_cfg`` of a head asks for.

        Args:
            test_cfg: With ``nms`` and ``max_per_img``.
            setting: Where the config has it.
            unlimited: Whether that head takes a ``max_per_img`` below 1 for no limit.

        Raises:
            UserError: If it asks for something else.
        """
        settings, limit = test_cfg.get('nms'), test_cfg.get('max_per_img')
        if not isinstance(settings, Mapping) or 'iou_threshold' not in settings:
            refuse(f'{setting}.nms={settings!r}', "dict(type='nms', iou_threshold=...) is")
        kind = settings.get('type', 'nms')
        if kind != 'nms':
            refuse(f'{setting}.nms.type={kind!r}', "'nms' is")
        for key in settings.keys() - _NMS_KEYS:
            refuse(f'{setting}.nms.{key}={settings[key]!r}', 'nms without it is')
        if limit is None or (limit < 1 and not unlimited):
            refuse(f'{setting}.max_per_img={limit!r}', 'a positive number is')
        across = bool(settings.get('class_agnostic', False))
        return cls(float(settings['iou_threshold']), limit if limit >= 1 else None, across)

    def __call__(self, boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
        """Places of the ``(n, 4)`` boxes that are kept, the best score first."""
        if not self.across_groups:  # apart from each other by as much as mmcv puts between them, to round as it does
            largest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()  # of no boxes there would be none
            boxes = boxes + (groups.to(boxes) * (largest + 1))[:, None]
        return nms(boxes, scores, self.iou)[: self.limit]


def positive(test_cfg: Mapping[str, Any], key: str, setting: str) -> int:
    """A number that has to be there and above zero: mmdet means other things by others, not the same everywhere.

    Raises:
        UserError: If it is not.
    """
    value = test_cfg.get(key)
    if not isinstance(value, int) or value < 1:
        refuse(f'{setting}.{key}={value!r}', 'a positive number is')
    return value


def rows_of(map_: torch.Tensor, columns: int) -> torch.Tensor:
    """``(1, anchors * columns, h, w)`` of a head as ``(h * w * anchors, columns)``."""
    return map_[0].permute(1, 2, 0).reshape(-1, columns)


def joined(parts: Sequence[tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Tensors of several levels, one after the other."""
    return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
