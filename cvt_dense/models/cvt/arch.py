"""The table of CvT variants.

Source: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808, table 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..per_block import PerBlock, per_block
from ..settings import is_integer, is_number, is_sequence, shown

#: Side of the images that most published checkpoints were trained on last, in pixels.
PRETRAIN_RESOLUTION = 384


@dataclass(frozen=True)
class Arch:
    """Architecture of a CvT trunk.

    Attributes:
        embed_dims: Channels of each stage.
        num_heads: Attention heads of each stage; each divides the stage's channels.
        depths: Blocks of each stage.
        mlp_ratio: Hidden width of the MLP over its input width; per layer, as
            :func:`~cvt_dense.models.per_block.per_block` reads it.
        kv_stride: Stride of the convolutional projection of keys and values; per layer, by the same rule.

    Raises:
        ValueError: If the settings contradict each other; the message names the setting.
    """

    embed_dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratio: PerBlock = 4.0
    kv_stride: PerBlock = 2

    def __post_init__(self) -> None:
        for name in ('embed_dims', 'num_heads', 'depths'):
            values = getattr(self, name)
            if not is_sequence(values) or not values:
                raise ValueError(f'{name} must be a list with one integer per stage, got {shown(values)}')
            if any(not is_integer(v) or v < 1 for v in values):
                raise ValueError(f'{name} must hold positive integers, got {shown(list(values))}')
            object.__setattr__(self, name, tuple(int(v) for v in values))
        if not len(self.embed_dims) == len(self.num_heads) == len(self.depths):
            raise ValueError(
                'embed_dims, num_heads and depths must have one value per stage, got '
                f'{len(self.embed_dims)}, {len(self.num_heads)} and {len(self.depths)} values'
            )
        for dim, heads in zip(self.embed_dims, self.num_heads):
            if dim % heads:
                raise ValueError(f'embed_dims must be divisible by num_heads, got {dim} channels for {heads} heads')
        for dim, stage in zip(self.embed_dims, per_block(self.mlp_ratio, self.depths, 'mlp_ratio')):
            if any(not is_number(ratio) or int(dim * ratio) < 1 for ratio in stage):
                raise ValueError(f'mlp_ratio must hold numbers that leave a hidden unit, got {shown(self.mlp_ratio)}')
        for stage in per_block(self.kv_stride, self.depths, 'kv_stride'):
            if any(not is_integer(stride) or stride < 1 for stride in stage):
                raise ValueError(f'kv_stride must hold positive integers, got {shown(self.kv_stride)}')

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def strides(self) -> tuple[int, ...]:
        """Total stride of each stage: 4 for the first one, twice that of the one before for the others."""
        return tuple(4 * 2**stage for stage in range(self.num_stages))

    @property
    def pretrain_grid(self) -> tuple[int, ...]:
        """Side of each stage's map, in tokens, for images of :data:`PRETRAIN_RESOLUTION`."""
        return tuple(PRETRAIN_RESOLUTION // stride for stride in self.strides)


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
    if isinstance(arch, Arch):
        return arch
    if isinstance(arch, str):
        if arch not in ARCHS:
            raise ValueError(f'unknown arch {arch!r}; choose one of {", ".join(ARCHS)}, or give a dict')
        return ARCHS[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch must be a name ({", ".join(ARCHS)}) or a dict, got {type(arch).__name__}')
    known = [field.name for field in fields(Arch)]
    unknown = sorted(str(key) for key in arch if key not in known)
    missing = [name for name in ('embed_dims', 'num_heads', 'depths') if name not in arch]
    if unknown or missing:
        parts = [f'{what} {", ".join(names)}' for what, names in (('unknown', unknown), ('missing', missing)) if names]
        raise ValueError(f'arch dict: {"; ".join(parts)} (it takes {", ".join(known)})')
    return Arch(**arch)
