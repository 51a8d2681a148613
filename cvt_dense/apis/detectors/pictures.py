"""Images to compare detectors on: soft noise with sharp shapes, so that there is something to find anywhere."""

from __future__ import annotations

import torch
import torch.nn.functional as F

_SHAPES = 8


def draw(seed: int, height: int, width: int) -> torch.Tensor:
    """Draw ``(1, 3, height, width)`` float pixels, whole numbers from 0 to 255."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    image = F.interpolate(random(1, 3, 5, 7), (height, width), mode='bicubic', align_corners=False)[0]
    rows, columns = torch.arange(height)[:, None] / height, torch.arange(width) / width
    for number in range(_SHAPES):
        (y, x), (h, w) = random(2), 0.05 + 0.25 * random(2)
        away = torch.stack(torch.broadcast_tensors((rows - y).abs() / h, (columns - x).abs() / w))
        inside = (away.amax(0) if number % 2 else away.norm(dim=0)) < 1  # rectangles and ellipses
        image[:, inside] = random(3, 1)
    image += 0.05 * random(3, height, width)
    return (image * 255).round().clamp(0, 255)[None]
