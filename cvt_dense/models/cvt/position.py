"""What tells where a token is, which the published CvT does without (arXiv 2103.15808, section 4.4)."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

import torch
import torch.nn.functional as F
from torch import nn

from ..tokens import Size, map_to_tokens, tokens_to_map


class LearnedPosition(nn.Module):
    """An embedding of each place of a map, added to its tokens; for maps of another size it is interpolated.

    Args:
        dim: Channels of the tokens.
        grid: Size of the map of the images that it is made for, in tokens.

    Attributes:
        weight: ``(1, dim, *grid)``.
    """

    def __init__(self, dim: int, grid: Size) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dim, *grid))

    def forward(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """Add the embedding to the ``(N, H * W, dim)`` tokens of maps of one size."""
        # Also where the size is the grid's, and nothing changes: a graph is for all sizes.
        embedding = F.interpolate(self.weight, size=size, mode='bicubic', align_corners=False)
        return tokens + map_to_tokens(embedding).to(tokens.dtype)


class ConvPosition(nn.Module):
    """A depth-wise 3x3 convolution of a map, added to it: at its borders the zeros around it tell where a token is.

    Source: the positional encoding generator of CPVT, arXiv 2102.10882, section 3.3.

    Args:
        dim: Channels of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)

    def forward(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """Add what the convolution makes of the ``(N, H * W, dim)`` tokens of maps of one size."""
        return tokens + map_to_tokens(self.conv(tokens_to_map(tokens, size)))
