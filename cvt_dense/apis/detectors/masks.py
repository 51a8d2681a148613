"""Masks of boxes, pasted into the image."""

from __future__ import annotations

import torch

from .boxes import Size


def paste(masks: torch.Tensor, boxes: torch.Tensor, size: Size, threshold: float) -> torch.Tensor:
    """Enlarge masks to their boxes, as mmdet does on a CPU.

    Bilinear interpolation with zeros beyond the border is a matrix product along either axis, which needs no grid of
    coordinates: for 100 boxes in 800×1344 pixels, 0.4 GB instead of 0.9 GB more.

    Args:
        masks: ``(n, m, m)`` probabilities.
        boxes: ``(n, 4)``.
        size: Of the image.
        threshold: A pixel of at least so much is in the mask.

    Returns:
        ``(n, *size)`` bool.
    """
    height, width = size
    rows = _weights(boxes[:, 1], boxes[:, 3], height, masks.shape[1])
    columns = _weights(boxes[:, 0], boxes[:, 2], width, masks.shape[2])
    return rows @ masks @ columns.transpose(1, 2) >= threshold


def _weights(start: torch.Tensor, end: torch.Tensor, length: int, cells: int) -> torch.Tensor:
    """``(n, length, cells)``: how much of each cell a pixel has, along one axis.

    A mask's outermost cells reach beyond its box; pixels that are more than one away from it have nothing all the same.
    """
    pixels, start, end = torch.arange(length, device=start.device).to(start), start[:, None], end[:, None]
    places = (pixels + 0.5 - start) / (end - start) * 2 - 1
    # Of a box without width, mmdet takes the middle of the mask.
    places = torch.where(places.isinf(), 0, places)
    places = ((places + 1) * cells - 1) / 2
    near = (pixels >= start.floor() - 1) & (pixels < end.ceil() + 1)
    weights = (1 - (places[:, :, None] - torch.arange(cells, device=start.device)).abs()).clamp(min=0)
    return weights * near[:, :, None]
