"""What a table of variants says of a backbone with stages, whatever its family, and how one is looked up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from .per_block import PerBlock, per_block
from .settings import is_integer, is_number, is_sequence, shown

_REQUIRED = ('embed_dims', 'num_heads', 'depths')


@dataclass(frozen=True)
class StagedArch:
    """Architecture of a trunk: stages of blocks, at strides 4, 8, 16 and so on.

    Attributes:
        embed_dims: Channels of each stage.
        num_heads: Attention heads of each stage; each divides the stage's channels.
        depths: Blocks of each stage.
        mlp_ratio: Hidden width of the MLP over its input width; per layer, as
            :func:`~cvt_dense.models.per_block.per_block` reads it.
        kv_stride: Stride of keys and values relative to queries; per layer, by the same rule.

    Raises:
        ValueError: If the settings contradict each other; the message names the setting.
    """

    embed_dims: tuple[int, ...]
    num_heads: tuple[int, ...]
    depths: tuple[int, ...]
    mlp_ratio: PerBlock = 4.0
    kv_stride: PerBlock = 2

    def __post_init__(self) -> None:
        for name in _REQUIRED:
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


ArchType = TypeVar('ArchType', bound=StagedArch)


def look_up(
    arch: str | Mapping[str, Any] | ArchType, variants: Mapping[str, ArchType], kind: type[ArchType]
) -> ArchType:
    """Look a variant up by its name, or make one from a dict of its attributes.

    Args:
        arch: The name, the dict, or an architecture, which is returned as it is.
        variants: Those of the family, by name.
        kind: The family's class of architectures.

    Raises:
        ValueError: If the name is unknown, or the dict has unknown, missing or contradictory keys.
        TypeError: If ``arch`` is neither a name nor a dict.
    """
    if isinstance(arch, kind):
        return arch
    if isinstance(arch, str):
        if arch not in variants:
            raise ValueError(f'unknown arch {arch!r}; choose one of {", ".join(variants)}, or give a dict')
        return variants[arch]
    if not isinstance(arch, Mapping):
        raise TypeError(f'arch must be a name ({", ".join(variants)}) or a dict, got {type(arch).__name__}')
    known = [field.name for field in fields(kind)]
    unknown = sorted(str(key) for key in arch if key not in known)
    missing = [name for name in _REQUIRED if name not in arch]
    if unknown or missing:
        parts = [f'{what} {", ".join(names)}' for what, names in (('unknown', unknown), ('missing', missing)) if names]
        raise ValueError(f'arch dict: {"; ".join(parts)} (it takes {", ".join(known)})')
    return kind(**arch)
