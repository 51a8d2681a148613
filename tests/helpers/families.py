"""The families of backbones, for tests of what holds for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from golden import CMT_TINY, TINY
from torch import nn

from cvt_dense import CMT, CMTTrunk, CvT, CvTTrunk
from cvt_dense.models.norms import keeps_statistics
from cvt_dense.models.trunk import Trunk

Sizes = list[tuple[int, int]]


@dataclass(frozen=True)
class Family:
    """A family.

    Attributes:
        name: Of the backbone in registries.
        backbone: Its class.
        trunk: The class of its trunk.
        tiny: An architecture with all of its stages.
        small: One with two stages of one block, for what takes long.
        min_size: Side of the smallest image.
        default: Channels of the maps of the default variant.
        map_sizes: Sizes of the maps of an image, by its height, width and the number of stages.
        first_layer: Name of the convolution that sees the image.
        hidden: Channels of the largest map of ``tiny``: the hidden layer of an MLP in the first stage.
    """

    name: str
    backbone: type[nn.Module]
    trunk: type[Trunk]
    tiny: dict[str, Any]
    small: dict[str, Any]
    min_size: int
    default: tuple[int, ...]
    map_sizes: Callable[[int, int, int], Sizes]
    first_layer: str
    hidden: int

    @property
    def num_stages(self) -> int:
        return len(self.tiny['depths'])

    def build(self, **settings: Any) -> nn.Module:
        """A backbone, by default of the tiny architecture."""
        return self.backbone(**(dict(arch=self.tiny) | settings))

    def trunk_maps(self, trunk: Trunk, *inputs: Any) -> list[torch.Tensor]:
        """What the trunk's ``forward`` says of its maps, without what else it returns."""
        outputs = self.trunk.forward(trunk, *inputs)
        return list(outputs[0]) if isinstance(outputs, tuple) else list(outputs)


def _cvt_sizes(height: int, width: int, num_stages: int) -> Sizes:
    sizes = [((height + 1) // 4, (width + 1) // 4)]
    while len(sizes) < num_stages:
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return sizes


def _cmt_sizes(height: int, width: int, num_stages: int) -> Sizes:
    return [((height + 1) // 2 ** (i + 2), (width + 1) // 2 ** (i + 2)) for i in range(num_stages)]


FAMILIES = {
    'cvt': Family(
        name='CvT',
        backbone=CvT,
        trunk=CvTTrunk,
        tiny=TINY,
        small=dict(embed_dims=(8, 16), num_heads=(1, 2), depths=(1, 1)),
        min_size=16,
        default=(64, 192, 384),
        map_sizes=_cvt_sizes,
        first_layer='stage0.patch_embed.proj',
        hidden=64,
    ),
    'cmt': Family(
        name='CMT',
        backbone=CMT,
        trunk=CMTTrunk,
        tiny=CMT_TINY | dict(pretrain_size=64),
        small=dict(
            **dict(embed_dims=(8, 16), num_heads=(1, 2), depths=(1, 1), kv_stride=(4, 2)),
            **dict(stem_channels=4, pretrain_size=32),
        ),
        min_size=31,
        default=(64, 128, 256, 512),
        map_sizes=_cmt_sizes,
        first_layer='stem_conv1',
        hidden=57,
    ),
}

each_family = pytest.mark.parametrize('family', FAMILIES.values(), ids=FAMILIES)


def with_statistics(model: nn.Module) -> nn.Module:
    """BatchNorm as after some training: statistics of its own, and not those of a fresh one."""
    for module in model.modules():
        if keeps_statistics(module):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model
