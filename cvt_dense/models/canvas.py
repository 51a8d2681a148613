"""Padded batches: the images cut out of their canvas, and their maps laid out on one again.

Convolutions, attention and BatchNorm then see the images and nothing else, so what is computed for an image does not
depend on the images that it is in a batch with, and padding costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .settings import is_integer, is_sequence, shown
from .tokens import Size

#: Height and width of each image of a batch, in pixels; its top left corner is the canvas's.
ImageSizes = Sequence[Sequence[int]] | torch.Tensor


class CutImages(NamedTuple):
    """The images of a batch without their padding.

    Attributes:
        parts: Those of one size together: ``(n_i, C, H_i, W_i)``.
        places: The number in the batch of each image, in the order of the parts; None if nothing was cut off.
    """

    parts: list[torch.Tensor]
    places: list[int] | None


def cut_images(x: torch.Tensor, image_sizes: ImageSizes | None, least: int) -> CutImages:
    """Cut the images of a padded batch out.

    Args:
        x: ``(N, C, H, W)``.
        image_sizes: ``(height, width)`` of each image; None if each fills the canvas.
        least: The smallest side that a model can take. Of a smaller image, so much of the canvas is kept, as zeros.

    Raises:
        ValueError: If the sizes are not those of images in this batch.
    """
    if image_sizes is None or isinstance(image_sizes, torch.fx.Proxy):  # which stands for the default, in a trace
        return CutImages([x], None)
    canvas = (x.shape[2], x.shape[3])
    places_of: dict[Size, list[int]] = {}
    for place, size in enumerate(_check_sizes(image_sizes, x.shape[0], canvas)):
        places_of.setdefault(size, []).append(place)
    if list(places_of) == [canvas]:
        return CutImages([x], None)
    parts = []
    for (height, width), places in places_of.items():
        images = x[:, :, :height, :width]
        if len(places) < x.shape[0]:
            images = images[places]
        missing = max(least - height, 0), max(least - width, 0)
        parts.append(F.pad(images, (0, missing[1], 0, missing[0])) if any(missing) else images)
    return CutImages(parts, [place for places in places_of.values() for place in places])


def _check_sizes(image_sizes: ImageSizes, count: int, canvas: Size) -> list[Size]:
    sizes = image_sizes.tolist() if isinstance(image_sizes, torch.Tensor) else image_sizes
    are_sizes = is_sequence(sizes) and all(
        is_sequence(size) and len(size) == 2 and all(is_integer(side) for side in size) for size in sizes
    )
    if not are_sizes or len(sizes) != count:
        raise ValueError(f'image_sizes must hold (height, width) of each of the {count} images, got {shown(sizes)}')
    for height, width in sizes:
        if not (1 <= height <= canvas[0] and 1 <= width <= canvas[1]):
            raise ValueError(
                f'image_sizes must lie between 1x1 and the {canvas[0]}x{canvas[1]} pixels of the batch, got '
                f'{height}x{width}'
            )
    return [(int(height), int(width)) for height, width in sizes]


def lay_out(maps: list[torch.Tensor], places: list[int] | None, size: Size) -> torch.Tensor:
    """Lay the maps of cut images out on one canvas.

    Args:
        maps: ``(n_i, C, H_i, W_i)`` of each part, in any memory layout.
        places: As :func:`cut_images` returned them.
        size: ``(H, W)``, of the canvas's map.

    Returns:
        ``(N, C, H, W)``, with zeros where there is no image; contiguous if anything was cut off, else the only map.
    """
    if places is None:
        return maps[0]
    padded = [F.pad(x.contiguous(), (0, size[1] - x.shape[3], 0, size[0] - x.shape[2])) for x in maps]
    return in_order(padded, places).contiguous()  # padding leaves a map of one pixel in channels-last memory


def in_order(parts: list[torch.Tensor], places: list[int] | None) -> torch.Tensor:
    """Put what was computed for the images of each part, ``(n_i, …)``, into the order of the batch: ``(N, …)``."""
    x = torch.cat(parts) if len(parts) > 1 else parts[0]
    if places is None or places == sorted(places):
        return x
    return x[sorted(range(len(places)), key=places.__getitem__)]


def convolved_size(size: Size, conv: nn.Conv2d) -> Size:
    """Of the map that a convolution makes of one of ``size``."""
    height, width = (
        (length + 2 * conv.padding[axis] - conv.kernel_size[axis]) // conv.stride[axis] + 1
        for axis, length in enumerate(size)
    )
    return height, width
