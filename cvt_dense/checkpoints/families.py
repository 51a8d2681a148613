"""The families of models that checkpoints are of: how their tensors are told, and what may be done to them."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..models.arch import StagedArch
from ..models.cmt.arch import ARCHS as CMT_ARCHS
from ..models.cmt.arch import Arch as CMTArch
from ..models.cmt.position_bias import resized
from ..models.cmt.trunk import CMTTrunk
from ..models.cvt.arch import ARCHS as CVT_ARCHS
from ..models.cvt.arch import Arch as CvTArch
from ..models.cvt.trunk import CvTTrunk
from ..models.trunk import Trunk
from .formats import CMT_FORMATS, FORMATS, Format, StateDict


class Family:
    """A family of models. Tensors are under the names of its trunk.

    Attributes:
        trunk: Its trunk's class.
        variants: The known architectures, by name.
        formats: Of its checkpoints, by name.
        top: What the names of a classifier's tensors begin with, on top of the trunk.
        optional: What the names of tensors end with that the first stages of a larger trunk lack.
    """

    trunk: type[Trunk]
    variants: Mapping[str, StagedArch]
    formats: Mapping[str, Format]
    top: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.trunk.family

    def embedding(self, stage: int) -> str:
        """Name of the weight of a stage's embedding convolution."""
        raise NotImplementedError

    def stem(self, tensors: Container[str]) -> str:
        """Name of the weight of the convolution that sees the image, of a trunk that has these tensors."""
        return self.embedding(0)

    def arch_of(self, tensors: StateDict, dims: list[int], depths: list[int]) -> StagedArch:
        """The architecture of a complete trunk, by the widths and depths of its stages; what shows nowhere is anything.

        Raises:
            ValueError: If the tensors are of none.
        """
        raise NotImplementedError

    def adapted(self, tensors: StateDict, expected: Mapping[str, Tensor], model: Any) -> tuple[StateDict, str]:
        """Bring what is a matter of the size of images to a model's.

        Args:
            tensors: Of a checkpoint.
            expected: The model's, under the trunk's names.
            model: A trunk, or another model with its ``stages``.

        Returns:
            The tensors, and in words what was done, empty for nothing. What cannot be adapted stays as it is.
        """
        return tensors, ''

    def trunk_like(self, variant: str, tensors: StateDict) -> Trunk:
        """A fresh trunk of a known variant, for the images that tensors are for."""
        return self.trunk(self.variants[variant], **self.settings_like(variant, tensors))

    def settings_like(self, variant: str, tensors: StateDict) -> dict[str, int]:
        """Settings of the trunk of a known variant that make it fit tensors, where they are not the variant's own."""
        channels = int(tensors[self.stem(tensors)].shape[1])
        return {} if channels == 3 else dict(in_channels=channels)

    def stage_of(self, name: str) -> int | None:
        """The stage that a tensor belongs to; None for one of no stage."""
        place = self.trunk.place_of(name)
        return None if place is None else place.stage

    def depths_of(self, tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
        """How many blocks of each stage there are tensors of."""
        places = {place for key in tensors if (place := self.trunk.place_of(key)) and place.block is not None}
        return tuple(sum(place.stage == stage for place in places) for stage in sorted({p.stage for p in places}))

    def variant_of(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Name of the known variant that tensors are of, by depths and widths."""
        depths = self.depths_of(tensors)
        weights = (tensors.get(self.embedding(stage)) for stage in range(len(depths)))
        dims = tuple(weight.shape[0] for weight in weights if weight is not None and weight.ndim)
        return next(
            (name for name, arch in self.variants.items() if (arch.depths, arch.embed_dims) == (depths, dims)), None
        )

    def departures_of(self, tensors: Mapping[str, Tensor]) -> list[str]:
        """Settings of the architecture that no published weights have, by name."""
        return []

    def name_of(self, arch: StagedArch) -> str | None:
        """Name of the known variant that an architecture is."""
        return next((name for name, known in self.variants.items() if known == arch), None)


_CVT_STEM = 'stage0.stem.conv1.weight'


class _CvT(Family):
    trunk, variants, formats, top = CvTTrunk, CVT_ARCHS, FORMATS, ('norm.', 'head.')
    optional = ('cls_token',)

    def embedding(self, stage: int) -> str:
        return f'stage{stage}.patch_embed.proj.weight'

    def stem(self, tensors: Container[str]) -> str:
        return _CVT_STEM if _CVT_STEM in tensors else self.embedding(0)

    def arch_of(self, tensors: StateDict, dims: list[int], depths: list[int]) -> CvTArch:
        ratios = [
            [_length(tensors, f'stage{stage}.blocks.{block}.mlp.fc1.bias', dim) / dim for block in range(depth)]
            for stage, (dim, depth) in enumerate(zip(dims, depths))
        ]
        choices = self.choices_of(tensors, len(dims))
        positions = choices['position']
        if 'learned' in positions:
            first = positions.index('learned')  # the maps of later stages follow from its own
            table = tensors[f'stage{first}.pos_embed.weight']
            choices['pretrain_size'] = [4 * 2**first * side for side in table.shape[2:]]
        return CvTArch(dims, [1] * len(dims), depths, mlp_ratio=ratios, **choices)  # heads show in no shape

    def variant_of(self, tensors: Mapping[str, Tensor]) -> str | None:
        return None if self.departures_of(tensors) else super().variant_of(tensors)

    def departures_of(self, tensors: Mapping[str, Tensor]) -> list[str]:
        published, stages = CvTArch((1,), (1,), (1,)), len(self.depths_of(tensors))
        choices = self.choices_of(tensors, stages).items()
        return [name for name, values in choices if values not in ([getattr(published, name)] * stages, None)]

    def choices_of(self, tensors: Mapping[str, Tensor], stages: int) -> dict[str, Any]:
        """What there is, in each stage, of what :class:`~cvt_dense.models.cvt.arch.Arch` lets one choose."""
        kernels = [tensors.get(self.embedding(stage)) for stage in range(stages)]
        stem = tensors.get(_CVT_STEM)
        strides = [4 if stage == 0 and stem is None else 2 for stage in range(stages)]
        return dict(
            projection=[
                'conv' if _has(tensors, f'stage{i}.blocks.', '.conv_proj_') else 'linear' for i in range(stages)
            ],
            patch_embed=[
                'patch' if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] == stride else 'conv'
                for kernel, stride in zip(kernels, strides)
            ],
            position=[_position(tensors, f'stage{i}.pos_embed') for i in range(stages)],
            stem_channels=stem.shape[0] if stem is not None and stem.ndim else None,
        )


def _position(tensors: Mapping[str, Tensor], module: str) -> str:
    if f'{module}.weight' in tensors:
        return 'learned'
    return 'conv' if f'{module}.conv.weight' in tensors else 'none'


def _has(tensors: Mapping[str, Tensor], start: str, part: str) -> bool:
    return any(name.startswith(start) and part in name for name in tensors)


class _CMT(Family):
    trunk, variants, formats, top = CMTTrunk, CMT_ARCHS, CMT_FORMATS, ('_fc.', '_bn.', 'head.')

    def embedding(self, stage: int) -> str:
        return f'patch_embed_{_letter(stage)}.proj.weight'

    def stem(self, tensors: Container[str]) -> str:
        return 'stem_conv1.weight'

    def name_of(self, arch: StagedArch) -> str | None:
        """Of images of whatever size."""
        known = self.variants.items()
        return next((name for name, other in known if replace(arch, pretrain_size=other.pretrain_size) == other), None)

    def arch_of(self, tensors: StateDict, dims: list[int], depths: list[int]) -> CMTArch:
        tables = [tensors.get(f'relative_pos_{_letter(stage)}') for stage in range(len(dims))]
        if any(table is None or table.ndim != 3 for table in tables):
            raise ValueError('a table of the position bias is missing')
        sides = [_sides(table) for table in tables]
        ratios, strides = [], []
        for stage, (dim, depth) in enumerate(zip(dims, depths)):
            blocks = f'blocks_{_letter(stage)}'
            hidden = (_length(tensors, f'{blocks}.{block}.mlp.proj.bias', dim) for block in range(depth))
            ratios.append([(length + 0.5) / dim for length in hidden])  # whose product with dim is cut
            kernel = tensors.get(f'{blocks}.0.attn.sr.0.weight')
            strides.append(1 if kernel is None else int(kernel.shape[-1]))
        return CMTArch(
            dims,
            [len(table) for table in tables],
            depths,
            mlp_ratio=ratios,
            kv_stride=strides,
            stem_channels=_length(tensors, 'stem_conv1.bias', 1),
            pretrain_size=4 * sides[0][0],
        )

    def settings_like(self, variant: str, tensors: StateDict) -> dict[str, int]:
        side = 4 * _sides(tensors['relative_pos_a'])[0]
        others = {} if side == self.variants[variant].pretrain_size else dict(pretrain_size=side)
        return super().settings_like(variant, tensors) | others

    def adapted(self, tensors: StateDict, expected: Mapping[str, Tensor], model: Any) -> tuple[StateDict, str]:
        """Interpolate tables of the position bias that are for images of another, square size."""
        adapted, sizes = dict(tensors), set()
        grids = [stage.grid for stage in model.stages]
        for index, grid in enumerate(grids):
            name = f'relative_pos_{_letter(index)}'
            table, wanted = tensors.get(name), expected[name]
            if table is None or table.ndim != 3 or table.shape == wanted.shape or len(table) != len(wanted):
                continue
            try:
                queries, keys = _sides(table)
            except ValueError:
                continue  # which is found to have a wrong shape
            if queries // grid.kv_stride == keys:
                made_for = grid._replace(queries=(queries, queries), keys=(keys, keys))
                adapted[name] = resized(table, made_for, grid.queries).to(table.dtype)
                sizes.add(4 * 2**index * queries)
        if not sizes:
            return tensors, ''
        side = 'x'.join(map(str, (4 * length for length in grids[0].queries)))
        return adapted, f'position bias of images of {max(sizes)} pixels interpolated to {side}'


def _letter(stage: int) -> str:
    return chr(ord('a') + stage)


def _length(tensors: StateDict, name: str, otherwise: int) -> int:
    return len(tensors[name]) if name in tensors and tensors[name].ndim else otherwise


def _sides(table: Tensor) -> tuple[int, int]:
    """Side of the maps of queries and of keys that a table of the position bias is for.

    Raises:
        ValueError: If one of them is not a square, whose sides a table does not tell.
    """
    sides = math.isqrt(table.shape[1]), math.isqrt(table.shape[2])
    if (sides[0] ** 2, sides[1] ** 2) != tuple(table.shape[1:]):
        raise ValueError(f'a table of {table.shape[1]} places and {table.shape[2]} keys is not of a square image')
    return sides


#: By name.
FAMILIES: dict[str, Family] = {family.name: family for family in (_CvT(), _CMT())}


def family_of(model: Trunk) -> Family:
    """The family of a trunk, or of a backbone that is one."""
    return FAMILIES[model.family]


def recognised(tensors: Mapping[str, Tensor]) -> tuple[Family, str] | None:
    """The family, and the name of its format, that tensors have the names of; None for none."""
    for family in FAMILIES.values():
        for name, known in family.formats.items():
            if known.recognises(tensors):
                return family, name
    return None


def find_variant(name: str) -> tuple[Family, StagedArch] | None:
    """The family and architecture of a known variant; None if there is no such."""
    return next(((f, f.variants[name]) for f in FAMILIES.values() if name in f.variants), None)


def on_meta(family: Family, arch: StagedArch, in_channels: int) -> Trunk:
    """A trunk with shapes and no values."""
    with torch.device('meta'):
        return family.trunk(arch, in_channels=in_channels)
