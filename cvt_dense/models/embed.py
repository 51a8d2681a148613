"""Token embeddings: an image or a map in, tokens at a lower resolution out."""

from __future__ import annotations

import torch
from torch import nn

from .tokens import Size, map_to_tokens

EMBED_NORM_EPS = 1e-5


class ConvEmbed(nn.Module):
    """A strided convolution, then LayerNorm over the channels.

    Args:
        in_channels: Channels of the map that comes in.
        embed_dim: Channels of the tokens that come out.
        kernel_size: Side of the convolution's kernel, in pixels.
        stride: Down-sampling factor.
        padding: Zeros added on each side.
    """

    def __init__(self, in_channels: int, embed_dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(embed_dim, eps=EMBED_NORM_EPS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Size]:
        """Embed an ``(N, C, H, W)`` map: its ``(N, H' * W', embed_dim)`` tokens and ``(H', W')``."""
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(map_to_tokens(x)), (x.shape[2], x.shape[3])
