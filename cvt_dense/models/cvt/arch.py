"""The table of CvT variants.

Source: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808, table 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arch import StagedArch, look_up
from ..per_block import per_block
from ..settings import height_and_width, image_size, integer, shown
from ..tokens import Size

#: Side of the images that most published checkpoints were trained on last, in pixels.
PRETRAIN_RESOLUTION = 384
#: Side of the smallest image, in pixels: the stride of the deepest stage of the published variants.
MIN_SIZE = 16

#: A name, or one per stage.
PerStage = str | Sequence[str]
_PROJECTIONS, _EMBEDS, _POSITIONS = ('conv', 'linear'), ('conv', 'patch'), ('none', 'learned', 'conv')


@dataclass(frozen=True)
class Arch(StagedArch):
    """Architecture of a CvT trunk, see :class:`~cvt_dense.models.arch.StagedArch`.

    By default CvT as published. The other choices are those that the paper compares it with (section 4.4), for whoever
    repeats its experiments, and what helps where it is trained from scratch; no weights are published for them.

    Attributes:
        projection: What makes queries, keys and values (table 7): ``'conv'``, a convolution and a linear layer, or
            ``'linear'``, the linear layer alone, as in ViT: keys and values are then those of every token, and
            ``kv_stride`` has no effect. For all blocks, one per stage or one per block.
        patch_embed: What makes a stage's tokens (table 5): ``'conv'``, a convolution whose windows overlap, or
            ``'patch'``, one whose windows do not, as in ViT; what is left of a map at its end is cut off then. For all
            stages, or one per stage.
        position: What tells where a token is (table 4): ``'none'``, nothing but the convolutions, or ``'learned'``,
            an embedding of each place added to the stage's tokens, or ``'conv'``, a depth-wise convolution of them
            added to them (CPVT, arXiv 2102.10882, section 3.3). For all stages, or one per stage.
        stem_channels: Channels of a stem of three convolutions in front of the first stage, which takes the image to
            half its resolution; that stage's embedding is one at stride 2 then, as those of the others are. None for
            no stem.
        pretrain_size: Side of the images that learned positions are made for, in pixels, or their
            ``(height, width)``. At other sizes they are interpolated.
    """

    projection: PerStage | Sequence[PerStage] = 'conv'
    patch_embed: PerStage = 'conv'
    position: PerStage = 'none'
    stem_channels: int | None = None
    pretrain_size: int | Size = PRETRAIN_RESOLUTION

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, known in (('projection', _PROJECTIONS), ('patch_embed', _EMBEDS), ('position', _POSITIONS)):
            value = getattr(self, name)
            depths = self.depths if name == 'projection' else [1] * self.num_stages
            spread = per_block(value, depths, name)
            if any(not isinstance(v, str) or v not in known for stage in spread for v in stage):
                raise ValueError(f'{name} must be one of {known}, or hold one per stage, got {shown(value)}')
        if self.stem_channels is not None:
            object.__setattr__(self, 'stem_channels', integer(self.stem_channels, 'stem_channels'))
        object.__setattr__(self, 'pretrain_size', image_size(self.pretrain_size, self.min_size, 'pretrain_size'))

    @property
    def kv_strides(self) -> list[list[int]]:
        """Stride of keys and values of each block, ``[stage][block]``."""
        projections = per_block(self.projection, self.depths, 'projection')
        strides = per_block(self.kv_stride, self.depths, 'kv_stride')
        return [
            [1 if projection == 'linear' else stride for projection, stride in zip(*stage)]
            for stage in zip(projections, strides)
        ]

    @property
    def min_size(self) -> int:
        """Side of the smallest image, in pixels."""
        return max(MIN_SIZE, self.strides[-1]) if 'patch' in self.per_stage('patch_embed') else MIN_SIZE

    @property
    def pretrain_grid(self) -> tuple[int, ...]:
        """The longer side of each stage's map, in tokens, for images of ``pretrain_size``."""
        side = max(height_and_width(self.pretrain_size))
        return tuple(max(1, side // stride) for stride in self.strides)

    @property
    def fast_windows(self) -> list[list[int | None]]:
        """What ``window_size='fast'`` stands for: windows throughout, and global attention in the last block alone.

        Windows have the side of the last stage's map in pre-training. In the blocks between, convolutions and the cls
        token carry what is beyond them (as convolutions do in ViTDet, arXiv 2203.16527, section 3).
        """
        side = self.pretrain_grid[-1]
        windows: list[list[int | None]] = [[side] * depth for depth in self.depths]
        windows[-1][-1] = None
        return windows

    def per_stage(self, name: str) -> list[str]:
        """A setting of stages by its name, one value per stage."""
        return [value for (value,) in per_block(getattr(self, name), [1] * self.num_stages, name)]


#: The published variants (table 2 of the paper; W24 in section 4.2).
ARCHS: dict[str, Arch] = {
    'cvt-13': Arch(embed_dims=(64, 192, 384), num_heads=(1, 3, 6), depths=(1, 2, 10)),
    'cvt-21': Arch(embed_dims=(64, 192, 384), num_heads=(1, 3, 6), depths=(1, 4, 16)),
    'cvt-w24': Arch(embed_dims=(192, 768, 1024), num_heads=(3, 12, 16), depths=(2, 2, 20)),
}


def get_arch(arch: str | Mapping[str, Any] | Arch) -> Arch:
    """Look a variant up by its name, or make one from a dict of :class:`Arch`'s attributes.

    Raises:
        ValueError: If the name is unknown, or the dict has unknown, missing or contradictory keys.
        TypeError: If ``arch`` is neither a name nor a dict.
    """
    return look_up(arch, ARCHS, Arch)
