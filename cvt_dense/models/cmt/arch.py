"""The table of CMT variants.

Source: Guo et al., "CMT: Convolutional Neural Networks Meet Vision Transformers", arXiv 2107.06263, table 1, and the
published weights, which differ from it in the width of the stem.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arch import StagedArch, look_up
from ..per_block import PerBlock, per_block
from ..settings import height_and_width, image_size, integer, shown
from ..tokens import Size

#: A side in pixels, or height and width.
Resolution = int | Sequence[int]


@dataclass(frozen=True)
class Arch(StagedArch):
    """Architecture of a CMT trunk, see :class:`~cvt_dense.models.arch.StagedArch`.

    Attributes:
        kv_stride: The same for all blocks of a stage, since they share their position bias.
        stem_channels: Channels of the stem, at stride 2.
        pretrain_size: Side of the images that the position bias is made for, in pixels, or their
            ``(height, width)``.
    """

    kv_stride: PerBlock = (8, 4, 2, 1)
    stem_channels: int = 32
    pretrain_size: Resolution = 224

    def __post_init__(self) -> None:
        super().__post_init__()
        for stage in per_block(self.kv_stride, self.depths, 'kv_stride'):
            if len(set(stage)) > 1:
                raise ValueError(
                    'kv_stride must be the same in all blocks of a stage, which share a position bias, got '
                    f'{shown(self.kv_stride)}'
                )
        object.__setattr__(self, 'stem_channels', integer(self.stem_channels, 'stem_channels'))
        object.__setattr__(self, 'pretrain_size', image_size(self.pretrain_size, self.min_size, 'pretrain_size'))

    @property
    def kv_strides(self) -> tuple[int, ...]:
        """Stride of keys and values of each stage."""
        return tuple(int(stage[0]) for stage in per_block(self.kv_stride, self.depths, 'kv_stride'))

    @property
    def min_size(self) -> int:
        """Side of the smallest image, in pixels: each stage has a key for it."""
        return max(stride * kv_stride for stride, kv_stride in zip(self.strides, self.kv_strides)) - 1

    @property
    def query_grids(self) -> tuple[Size, ...]:
        """Size of each stage's map, in tokens, for images of ``pretrain_size``."""
        height, width = height_and_width(self.pretrain_size)
        return tuple(((height + 1) // stride, (width + 1) // stride) for stride in self.strides)

    @property
    def key_grids(self) -> tuple[Size, ...]:
        """Size of each stage's map of keys, likewise."""
        return tuple((h // stride, w // stride) for (h, w), stride in zip(self.query_grids, self.kv_strides))

    @property
    def pretrain_grid(self) -> tuple[int, ...]:
        """The longer side of each stage's map, likewise."""
        return tuple(max(grid) for grid in self.query_grids)


#: The published variants.
ARCHS: dict[str, Arch] = {
    'cmt-ti': Arch((46, 92, 184, 368), (1, 2, 4, 8), (2, 2, 10, 2), 3.6, stem_channels=16, pretrain_size=160),
    'cmt-xs': Arch((52, 104, 208, 416), (1, 2, 4, 8), (3, 3, 12, 3), 3.77, stem_channels=16, pretrain_size=192),
    'cmt-s': Arch((64, 128, 256, 512), (1, 2, 4, 8), (3, 3, 16, 3), stem_channels=32, pretrain_size=224),
    'cmt-b': Arch((76, 152, 304, 608), (1, 2, 4, 8), (4, 4, 20, 4), stem_channels=38, pretrain_size=256),
}


def get_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """Look a variant up by its name, or make one from a dict of :class:`Arch`'s attributes.

    Raises:
        ValueError: If the name is unknown, or the dict has unknown, missing or contradictory keys.
        TypeError: If ``arch`` is neither a name nor a dict.
    """
    return look_up(arch, ARCHS, Arch)
