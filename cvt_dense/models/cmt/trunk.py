"""The trunk of CMT: an image in, one feature map per stage out. Plain PyTorch; the adapters build on it."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from ..canvas import ImageSizes, lay_out
from ..embed import ConvEmbed
from ..layout import Layout, pack, to_maps
from ..per_block import PerBlock, WindowSize, drop_path_rates, per_block, window_sizes
from ..recompute import recomputed
from ..settings import boolean, integer, shown
from ..stem import Stem, sampling_convolutions
from ..tokens import Size
from ..trunk import Place, Trunk
from .arch import Arch, Resolution, get_arch
from .layers import Block
from .position_bias import BiasGrid, PositionChannels, positions_of

_INTERPOLATIONS = ('bicubic', 'bilinear')
_PLACE = re.compile(r'(?:stem_\w+|(?:patch_embed|relative_pos|blocks)_([a-z]))(?:(?<=blocks_\w)\.(\d+))?(?:\.|$)')


def run_stage(self: Any, maps: list[torch.Tensor]) -> tuple[torch.Tensor, Layout]:
    """Compute a stage.

    Args:
        self: The stage. Called so because this is a method, of :class:`Stage` and of :class:`StageOfTrunk`.
        maps: ``(n_i, C_in, H_i, W_i)`` of each part of the batch, any memory layout.

    Returns:
        The tokens and their layout: ``(N, H * W, C)`` of images of one size, else all in one row
        (:mod:`~cvt_dense.models.layout`).
    """
    if self.stem is not None:
        maps = self.stem(maps)
    parts: list[torch.Tensor] = []
    counts: list[int] = []
    sizes: list[Size] = []
    for x in maps:
        tokens, size = self.patch_embed(x)
        parts.append(tokens)
        counts.append(x.shape[0])
        sizes.append(size)
    tokens, layout = pack(parts), Layout(counts, sizes)
    # Once per size of map and of window, for all blocks and images.
    grid = BiasGrid(self.grid[0], self.grid[1], self.grid[2], self.grid[3])  # to torch.jit an attribute is a mere tuple
    known: dict[int, list[PositionChannels]] = {}
    none: list[PositionChannels] = []
    for block in self.blocks:
        window = block.attn.window()
        if block.attn.with_bias and window not in known:
            known[window] = positions_of(self.relative_pos, grid, layout.sizes, window)
        positions = known[window] if block.attn.with_bias else none
        if self.with_cp and not torch.jit.is_scripting():
            tokens = recomputed(block, tokens, layout, positions)
        else:
            tokens = block(tokens, layout, positions)
    return tokens, layout


class Stage(nn.Module):
    """One stage of CMT: the stem in the first one, patch embedding, and blocks that share a position bias.

    Attributes:
        stem: None but in the first stage.
        relative_pos: ``(heads, queries, keys)``, the bias on the grid of the pre-training images.
        grid: What that is made for.
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self, stem: Stem | None, patch_embed: ConvEmbed, blocks: list[Block], num_heads: int, grid: BiasGrid
    ) -> None:
        super().__init__()
        self.stem = stem
        self.patch_embed = patch_embed
        self.blocks = nn.ModuleList(blocks)
        self.relative_pos = nn.Parameter(torch.zeros(num_heads, math.prod(grid.queries), math.prod(grid.keys)))
        self.grid = grid
        self.with_cp = False

    forward = run_stage

    def to_maps(self, tokens: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
        """View the stage's tokens as the ``(n_i, C, H_i, W_i)`` map of each part (channels-last in memory)."""
        return to_maps(tokens, layout, 0)

    def sampling(self) -> list[nn.Module]:
        """The convolutions that make the stage's map smaller than the one before."""
        return sampling_convolutions(self.stem, self.patch_embed)


class StageOfTrunk:
    """A :class:`Stage` whose modules are the trunk's own, under the names of the published weights."""

    def __init__(self, trunk: 'CMTTrunk', index: int) -> None:
        letter = _letter(index)
        self.stem = StemOfTrunk(trunk) if index == 0 else None
        self.patch_embed = getattr(trunk, f'patch_embed_{letter}')
        self.blocks = getattr(trunk, f'blocks_{letter}')
        self.relative_pos = getattr(trunk, f'relative_pos_{letter}')
        self.grid = trunk.grids[index]
        self.with_cp = trunk.with_cp

    __call__ = run_stage
    to_maps = Stage.to_maps
    sampling = Stage.sampling


class StemOfTrunk:
    """A :class:`~cvt_dense.models.stem.Stem`, likewise."""

    def __init__(self, trunk: 'CMTTrunk') -> None:
        for part in _STEM_PARTS:
            setattr(self, part, getattr(trunk, f'stem_{part}'))
        self.act = trunk.stem_act

    __call__ = Stem.forward


_STEM_PARTS = ('conv1', 'norm1', 'conv2', 'norm2', 'conv3', 'norm3')


def _letter(index: int) -> str:
    """Of a stage, as the published weights have it."""
    return chr(ord('a') + index)


def build_stages(
    arch: Arch,
    in_channels: int = 3,
    drop_path_rate: PerBlock = 0.0,
    window_size: WindowSize = None,
    num_stages: int | None = None,
    bias_interpolation: str = 'bicubic',
) -> list[Stage]:
    """Build the stages of a variant with fresh weights.

    Args:
        arch: The variant.
        in_channels: Channels of the image.
        drop_path_rate: As :func:`~cvt_dense.models.per_block.drop_path_rates` takes it.
        window_size: As :func:`~cvt_dense.models.per_block.window_sizes` takes it; ``'pretrain'`` for the variant's
            ``pretrain_grid``.
        num_stages: Only the first so many; all by default.
        bias_interpolation: As :class:`CMTTrunk` takes it.

    Raises:
        ValueError: If one of these settings is wrong.
    """
    if num_stages is None:
        num_stages = arch.num_stages
    elif integer(num_stages, 'num_stages') > arch.num_stages:
        raise ValueError(f'num_stages must be at most {arch.num_stages}, as many as the variant has, got {num_stages}')
    if bias_interpolation not in _INTERPOLATIONS:
        raise ValueError(f'bias_interpolation must be one of {_INTERPOLATIONS}, got {shown(bias_interpolation)}')
    mlp_ratio = per_block(arch.mlp_ratio, arch.depths, 'mlp_ratio')
    windows = window_sizes(window_size, arch.depths, arch.pretrain_grid)
    drop_path = drop_path_rates(drop_path_rate, arch.depths)
    stages = []
    channels = arch.stem_channels
    for index in range(num_stages):
        dim, heads, kv_stride = arch.embed_dims[index], arch.num_heads[index], arch.kv_strides[index]
        blocks = [
            Block(dim, heads, ratio, kv_stride, drop, window)
            for ratio, drop, window in zip(mlp_ratio[index], drop_path[index], windows[index])
        ]
        stem = Stem(in_channels, channels) if index == 0 else None
        patch_embed = ConvEmbed(channels, dim, kernel_size=2, stride=2, padding=0)
        grid = BiasGrid(arch.query_grids[index], arch.key_grids[index], kv_stride, bias_interpolation == 'bicubic')
        stages.append(Stage(stem, patch_embed, blocks, heads, grid))
        channels = dim
    return stages


@torch.no_grad()
def reset_parameters(model: nn.Module) -> None:
    """Draw a model's weights anew, as the authors do.

    Linear layers from N(0, 0.02²) cut at ±2, convolutions by Kaiming He's rule for their outputs, zero biases; position
    biases from N(0, 1).
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm2d)):
            module.reset_parameters()
    for name, parameter in model.named_parameters():
        if 'relative_pos' in name:
            nn.init.normal_(parameter)


class CMTTrunk(Trunk):
    """The stages of CMT (arXiv 2107.06263, figure 2), parameters named as in the published weights.

    Args:
        arch: ``'cmt-ti'``, ``'cmt-xs'``, ``'cmt-s'``, ``'cmt-b'``, an :class:`~cvt_dense.models.cmt.Arch` or a dict of
            its attributes.
        in_channels: Channels of the image.
        drop_path_rate: Drop-path probability: a scalar (the last block's, rising linearly from 0), one value per
            stage, or one per block.
        window_size: Side of the windows that attention is confined to, in tokens: one value for all blocks, one per
            stage or one per block; ``'pretrain'`` for the token grid of the pre-training images, 56/28/14/7 for
            CMT-S; None for exact, global attention.
        with_cp: Recompute each block in the backward pass (activation checkpointing).
        num_stages: Build only the first so many stages; all by default.
        pretrain_size: Side of the images that the position bias is made for, in pixels, or ``(height, width)``: the
            tables have so many places. None for the variant's own.
        bias_interpolation: How the position bias is brought to other sizes: ``'bicubic'`` or ``'bilinear'``.

    Raises:
        ValueError: If a setting is wrong; the message says which.
    """

    family = 'CMT'

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cmt-s',
        in_channels: int = 3,
        drop_path_rate: PerBlock = 0.0,
        window_size: WindowSize = None,
        with_cp: bool = False,
        num_stages: int | None = None,
        pretrain_size: Resolution | None = None,
        bias_interpolation: str = 'bicubic',
    ) -> None:
        super().__init__()
        arch = get_arch(arch)
        self.arch = arch if pretrain_size is None else replace(arch, pretrain_size=pretrain_size)
        self.in_channels = integer(in_channels, 'in_channels')
        stages = build_stages(self.arch, self.in_channels, drop_path_rate, window_size, num_stages, bias_interpolation)
        self.num_stages = len(stages)
        self.with_cp = boolean(with_cp, 'with_cp')
        self.grids = [stage.grid for stage in stages]
        for part in _STEM_PARTS:
            self.add_module(f'stem_{part}', getattr(stages[0].stem, part))
        self.stem_act = stages[0].stem.act
        for index, stage in enumerate(stages):
            letter = _letter(index)
            self.add_module(f'patch_embed_{letter}', stage.patch_embed)
            self.add_module(f'blocks_{letter}', stage.blocks)
            self.register_parameter(f'relative_pos_{letter}', stage.relative_pos)
        self.reset_parameters()

    @property
    def min_size(self) -> int:
        return self.arch.min_size

    @property
    def stages(self) -> list[StageOfTrunk]:
        return [StageOfTrunk(self, index) for index in range(self.num_stages)]

    @staticmethod
    def place_of(name: str) -> Place | None:
        match = _PLACE.match(name)
        if match is None:
            return None
        stage = 0 if match[1] is None else ord(match[1]) - ord('a')
        return Place(stage, None if match[2] is None else int(match[2]))

    def reset_parameters(self) -> None:
        """Draw the weights anew, see :func:`reset_parameters`."""
        reset_parameters(self)

    def forward(self, x: torch.Tensor, image_sizes: ImageSizes | None = None) -> list[torch.Tensor]:
        """Compute all stages.

        Args:
            x: Images, ``(N, in_channels, H, W)`` floating point, H and W at least 31, odd sizes too.
            image_sizes: ``(height, width)`` of each image in pixels, where the batch is padded at the right and at the
                bottom: what is computed for an image is then what it gives alone, whatever the padding holds. None if
                there is no padding.

        Returns:
            The map of each stage, ``(N, C_i, H_i, W_i)`` with ``H_0 = (H + 1) // 4`` and ``H_i = H_{i-1} // 2``, zero
            where there is no image, channels-last in memory if there is no padding. NaN or infinity in an image makes
            NaN of its maps, and leaves the maps of other images alone unless BatchNorm normalises by the batch.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats; or if the sizes are not
                those of images in it.
        """
        images, outputs = self.compute(x, image_sizes)
        return [lay_out(output.maps, images.places, size) for output, size in zip(outputs, self.map_sizes(x))]
