"""What models take: batches of images."""

from __future__ import annotations

import torch


def check_images(x: torch.Tensor, in_channels: int, min_size: int, family: str) -> None:
    """Refuse input that a model cannot take.

    Only what is known without waiting for a GPU is checked, so NaN is not. A wrong device or precision is left to
    torch to report: hooks that offload weights, and autocast, may fix it on the way.

    Args:
        x: What was given.
        in_channels: Channels of the model's images.
        min_size: The smallest side that it takes, in pixels.
        family: Its name in messages.

    Raises:
        TypeError: If ``x`` is not a tensor.
        ValueError: If ``x`` is not ``(N, in_channels, H, W)``, holds no images or too small ones, or no floats.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f'{family} takes one tensor of (N, {in_channels}, H, W) images, got {type(x).__name__}')
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f'{family} takes (N, {in_channels}, H, W) images, got shape {tuple(x.shape)}')
    # Not min() of both: torch 2.6 would compile anew for upright images, asking which side is the shorter one.
    if x.shape[0] == 0 or x.shape[2] < min_size or x.shape[3] < min_size:
        raise ValueError(
            f'{family} takes at least one image of at least {min_size}x{min_size} pixels, got shape {tuple(x.shape)}'
        )
    if not x.is_floating_point():
        raise ValueError(f'{family} takes floating-point images, got {x.dtype}; convert them with .float() first')
