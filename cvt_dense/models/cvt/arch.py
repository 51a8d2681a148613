"""The table of CvT variants.

Source: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808, table 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..arch import StagedArch, look_up

#: Side of the images that most published checkpoints were trained on last, in pixels.
PRETRAIN_RESOLUTION = 384


@dataclass(frozen=True)
class Arch(StagedArch):
    """Architecture of a CvT trunk, see :class:`~cvt_dense.models.arch.StagedArch`."""

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
    return look_up(arch, ARCHS, Arch)
