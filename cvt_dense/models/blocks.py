"""What blocks of transformers share, whatever their layers."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import nn

from .layout import Layout, pack, token_counts


class ResidualBlock(nn.Module):
    """A block with residual branches.

    Args:
        drop_path: The probability that an image goes without a branch, in training.
    """

    def __init__(self, drop_path: float) -> None:
        super().__init__()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def drop(self, branch: torch.Tensor, layout: Layout, num_prefix: int) -> torch.Tensor:
        """Drop the branch of some images (drop path), which is for images and not for the row that they may be in.

        Args:
            branch: Tokens of maps as laid out.
            layout: Of the maps.
            num_prefix: Tokens in front of each map's.
        """
        if len(layout.counts) == 1:
            return self.drop_path(branch)
        kept: list[torch.Tensor] = []
        for count, length in zip(layout.counts, token_counts(layout, num_prefix)):
            kept.append(self.drop_path(branch.new_ones(count, 1, 1)).expand(-1, length, -1))
        return branch * pack(kept)
