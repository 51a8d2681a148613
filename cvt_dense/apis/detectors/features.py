"""The maps that heads look at, from images as they are: normalized, padded, through backbone and neck."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.models import DetDataPreprocessor
from torch import nn

from .support import check_methods


class Features(nn.Module):
    """Preprocessor, backbone and neck of a detector, as a function of one image.

    A backbone that knows the sizes of padded images gets them without padding here, and its maps are padded instead, as
    it does itself (see :mod:`cvt_dense.models.canvas`).

    Args:
        model: A detector of mmdet.

    Raises:
        UserError: If its preprocessor is of an unknown kind.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        preprocessor = model.data_preprocessor
        methods = 'forward', 'cast_data'
        check_methods(preprocessor, DetDataPreprocessor, *methods, setting='data_preprocessor')
        self.backbone, self.neck = model.backbone, model.neck if model.with_neck else None
        self.divisor, self.pad_value = preprocessor.pad_size_divisor, preprocessor.pad_value
        is_normalizing = hasattr(preprocessor, 'mean')
        self.register_buffer('mean', preprocessor.mean.clone() if is_normalizing else torch.zeros(1, 1, 1))
        self.register_buffer('std', preprocessor.std.clone() if is_normalizing else torch.ones(1, 1, 1))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Maps of the padded image, of ``(1, C, H, W)`` pixels from 0 to 255."""
        images = (images - self.mean) / self.std
        padded = _padded(images, _missing(images, self.divisor), self.pad_value)
        if getattr(self.backbone, 'takes_announced_sizes', False):
            sizes = self.backbone.output_sizes(padded)
            maps = self.backbone(images)
            maps = tuple(_padded(x, (h - x.shape[2], w - x.shape[3])) for x, (h, w) in zip(maps, sizes, strict=True))
        else:
            maps = self.backbone(padded)
        return tuple(maps if self.neck is None else self.neck(maps))


def _missing(images: torch.Tensor, divisor: int) -> tuple[int, int]:
    """Rows and columns that an image is short of a multiple of the divisor."""
    height, width = images.shape[2:]
    return -height % divisor, -width % divisor


def _padded(x: torch.Tensor, missing: tuple[int, int], value: float = 0) -> torch.Tensor:
    return F.pad(x, (0, missing[1], 0, missing[0]), value=value)
