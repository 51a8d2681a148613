"""A stem of convolutions, which takes images to half their resolution before the first stage embeds them."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

import torch
from torch import nn

from .embed import ConvEmbed
from .norms import normalised_maps


class Stem(nn.Module):
    """Three 3x3 convolutions, the first one at stride 2, each followed by GELU and then BatchNorm.

    Source: CMT, arXiv 2107.06263, section 3.1.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.norm3 = nn.BatchNorm2d(channels)
        self.act = nn.GELU()

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the ``(n_i, channels, (H_i + 1) // 2, (W_i + 1) // 2)`` maps of images."""
        maps = [self.act(self.conv1(x.contiguous(memory_format=torch.channels_last))) for x in maps]
        if torch.jit.is_scripting():
            maps = [self.act(self.conv2(self.norm1(x))) for x in maps]
            maps = [self.act(self.conv3(self.norm2(x))) for x in maps]
            return [self.norm3(x) for x in maps]
        maps = [self.act(self.conv2(x)) for x in normalised_maps(self.norm1, maps)]
        maps = [self.act(self.conv3(x)) for x in normalised_maps(self.norm2, maps)]
        return normalised_maps(self.norm3, maps)


def sampling_convolutions(stem: Stem | None, patch_embed: ConvEmbed) -> list[nn.Conv2d]:
    """The convolutions that make a stage's map smaller than what it is given."""
    return [*([] if stem is None else [stem.conv1]), patch_embed.proj]
