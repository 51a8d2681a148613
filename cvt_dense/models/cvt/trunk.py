"""The trunk of CvT: an image in, one feature map per stage out. Plain PyTorch; the adapters build on it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from ..canvas import ImageSizes, convolved_size, in_order, lay_out
from ..embed import ConvEmbed
from ..layout import Layout, pack, to_maps, unpack
from ..per_block import PerBlock, WindowSize, drop_path_rates, per_block, window_sizes
from ..recompute import recomputed
from ..settings import boolean, height_and_width, image_size, integer, shown
from ..stem import Stem, sampling_convolutions
from ..tokens import Size
from ..trunk import Place, StageOutput, Trunk
from ..window_layout import key_map_size
from .arch import Arch, get_arch
from .layers import Block
from .position import ConvPosition, LearnedPosition

_PLACE = re.compile(r'stage(\d+)(?:\.blocks\.(\d+))?(?:\.|$)')
#: A side in pixels, or height and width, or nothing.
Resolution = int | Sequence[int] | None
_REFERENCE = 'reference_resolution'


class Stage(nn.Module):
    """One stage of CvT: convolutional token embedding, then blocks; a cls token where the variant has one.

    Attributes:
        pos_embed: None in the published variants.
        stem: Likewise; in front of the first stage's embedding.
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(
        self,
        patch_embed: ConvEmbed,
        blocks: list[Block],
        cls_token_dim: int | None = None,
        pos_embed: LearnedPosition | ConvPosition | None = None,
        stem: Stem | None = None,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.patch_embed = patch_embed
        self.pos_embed = pos_embed
        self.cls_token = None if cls_token_dim is None else nn.Parameter(torch.zeros(1, 1, cls_token_dim))
        self.blocks = nn.ModuleList(blocks)
        self.num_prefix_tokens = 0 if cls_token_dim is None else 1
        self.with_cp = False

    def forward(self, maps: list[torch.Tensor]) -> tuple[torch.Tensor, Layout]:
        """Compute the stage.

        Args:
            maps: ``(n_i, C_in, H_i, W_i)`` of each part of the batch, any memory layout.

        Returns:
            The tokens and their layout. Of images of one size they are ``(N, H * W, C)`` or, with a cls token in front,
            ``(N, 1 + H * W, C)``; else all in one row (:mod:`~cvt_dense.models.layout`).
        """
        parts: list[torch.Tensor] = []
        counts: list[int] = []
        sizes: list[Size] = []
        if self.stem is not None:
            maps = self.stem(maps)
        for x in maps:
            tokens, size = self.patch_embed(x)
            if self.pos_embed is not None:
                tokens = self.pos_embed(tokens, size)
            if self.cls_token is not None:
                cls_token = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
                tokens = torch.cat((cls_token, tokens), dim=1)
            parts.append(tokens)
            counts.append(x.shape[0])
            sizes.append(size)
        tokens, layout = pack(parts), Layout(counts, sizes)
        for block in self.blocks:
            if self.with_cp and not torch.jit.is_scripting():
                tokens = recomputed(block, tokens, layout)
            else:
                tokens = block(tokens, layout)
        return tokens, layout

    def sampling(self) -> list[nn.Module]:
        """The convolutions that make the stage's map smaller than the one before."""
        return sampling_convolutions(self.stem, self.patch_embed)

    def to_maps(self, tokens: torch.Tensor, layout: Layout) -> list[torch.Tensor]:
        """View the stage's tokens, less cls tokens, as the ``(n_i, C, H_i, W_i)`` maps (channels-last in memory)."""
        return to_maps(tokens, layout, self.num_prefix_tokens)


def build_stages(
    arch: Arch,
    in_channels: int = 3,
    drop_path_rate: PerBlock = 0.0,
    window_size: WindowSize = None,
    num_stages: int | None = None,
    reference_resolution: Resolution = None,
) -> list[Stage]:
    """Build the stages of a variant with fresh weights.

    Args:
        arch: The variant.
        in_channels: Channels of the image.
        drop_path_rate: As :func:`~cvt_dense.models.per_block.drop_path_rates` takes it.
        window_size: As :func:`~cvt_dense.models.per_block.window_sizes` takes it; ``'pretrain'`` for the variant's
            ``pretrain_grid``, ``'fast'`` for its ``fast_windows``.
        num_stages: Only the first so many; all by default. The last stage of the variant has the cls token.
        reference_resolution: As :class:`CvTTrunk` takes it.

    Raises:
        ValueError: If one of these settings is wrong.
    """
    if num_stages is None:
        num_stages = arch.num_stages
    elif integer(num_stages, 'num_stages') > arch.num_stages:
        raise ValueError(f'num_stages must be at most {arch.num_stages}, as many as the variant has, got {num_stages}')
    mlp_ratio = per_block(arch.mlp_ratio, arch.depths, 'mlp_ratio')
    projection = per_block(arch.projection, arch.depths, 'projection')
    if isinstance(window_size, str) and window_size == 'fast':
        window_size = arch.fast_windows
    windows = window_sizes(window_size, arch.depths, arch.pretrain_grid)
    drop_path = drop_path_rates(drop_path_rate, arch.depths)
    size = None
    if reference_resolution is not None:
        size = height_and_width(image_size(reference_resolution, arch.min_size, _REFERENCE))
    grid = height_and_width(arch.pretrain_size)
    stages = []
    for index in range(num_stages):
        dim, heads = arch.embed_dims[index], arch.num_heads[index]
        with_cls_token = index == arch.num_stages - 1
        channels = arch.embed_dims[index - 1] if index else in_channels
        kernel_size, stride, padding = (3, 2, 1) if index else (7, 4, 2)
        stem = None
        if index == 0 and arch.stem_channels is not None:
            stem, channels = Stem(channels, arch.stem_channels), arch.stem_channels
            kernel_size, stride, padding = 3, 2, 1
        if arch.per_stage('patch_embed')[index] == 'patch':
            kernel_size, padding = stride, 0
        patch_embed = ConvEmbed(channels, dim, kernel_size, stride, padding)
        for conv in sampling_convolutions(stem, patch_embed):
            grid = convolved_size(grid, conv)
            size = None if size is None else convolved_size(size, conv)
        blocks = []
        for ratio, stride, drop, window, kind in zip(
            mlp_ratio[index], arch.kv_strides[index], drop_path[index], windows[index], projection[index]
        ):
            keys = None if size is None else _reference_keys(size, stride, with_cls_token, reference_resolution)
            blocks.append(Block(dim, heads, ratio, stride, drop, with_cls_token, window, keys, kind))
        pos_embed = _position(arch.per_stage('position')[index], dim, grid)
        stages.append(Stage(patch_embed, blocks, dim if with_cls_token else None, pos_embed, stem))
    return stages


def _position(kind: str, dim: int, grid: Size) -> LearnedPosition | ConvPosition | None:
    if kind == 'none':
        return None
    return LearnedPosition(dim, grid) if kind == 'learned' else ConvPosition(dim)


def _reference_keys(size: Size, kv_stride: int, with_cls_token: bool, resolution: Resolution) -> int:
    rows, columns = key_map_size(size, kv_stride)
    count = rows * columns + int(with_cls_token)
    if count < 2:
        raise ValueError(
            f'{_REFERENCE} {shown(resolution)} is too small: it leaves a single key to attend to, the '
            'logarithm of which is 0'
        )
    return count


@torch.no_grad()
def reset_parameters(model: nn.Module) -> None:
    """Draw a model's weights anew: linear layers, cls token and positions from N(0, 0.02²) cut at ±2, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)):
            module.reset_parameters()
        elif isinstance(module, Stage) and module.cls_token is not None:
            trunc_normal_(module.cls_token, std=0.02)
        elif isinstance(module, LearnedPosition):
            trunc_normal_(module.weight, std=0.02)


class CvTTrunk(Trunk):
    """The stages of CvT (arXiv 2103.15808, figure 2), parameters named as in the published weights.

    Args:
        arch: ``'cvt-13'``, ``'cvt-21'``, ``'cvt-w24'``, an :class:`~cvt_dense.models.cvt.Arch` or a dict of its
            attributes.
        in_channels: Channels of the image.
        drop_path_rate: Drop-path probability: a scalar (the last block's, rising linearly from 0), one value per
            stage, or one per block.
        window_size: Side of the windows that attention is confined to, in tokens: one value for all blocks, one per
            stage or one per block; ``'pretrain'`` for the token grid of the checkpoints' resolution, 96/48/24; None
            for exact, global attention. ``'fast'``, for all blocks, is 24 in all but the last one.
        with_cp: Recompute each block in the backward pass (activation checkpointing).
        num_stages: Build only the first so many stages; all by default.
        reference_resolution: Side of the images that attention was trained on, in pixels, or ``(height, width)``: for
            images with more keys it is sharpened and with fewer flattened, by ``log(keys) / log(keys of the
            reference)`` on the dot products (:mod:`cvt_dense.models.key_count`). None leaves them as published.

    Raises:
        ValueError: If a setting is wrong; the message says which.
    """

    family = 'CvT'

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cvt-13',
        in_channels: int = 3,
        drop_path_rate: PerBlock = 0.0,
        window_size: WindowSize = None,
        with_cp: bool = False,
        num_stages: int | None = None,
        reference_resolution: Resolution = None,
    ) -> None:
        super().__init__()
        self.arch = get_arch(arch)
        self.in_channels = integer(in_channels, 'in_channels')
        stages = build_stages(
            self.arch, self.in_channels, drop_path_rate, window_size, num_stages, reference_resolution
        )
        self.num_stages = len(stages)
        for index, stage in enumerate(stages):
            stage.with_cp = boolean(with_cp, 'with_cp')
            self.add_module(f'stage{index}', stage)
        self.reset_parameters()

    @property
    def min_size(self) -> int:
        return self.arch.min_size

    @staticmethod
    def place_of(name: str) -> Place | None:
        match = _PLACE.match(name)
        return None if match is None else Place(int(match[1]), None if match[2] is None else int(match[2]))

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f'stage{index}') for index in range(self.num_stages)]

    def reset_parameters(self) -> None:
        """Draw the weights anew, see :func:`reset_parameters`."""
        reset_parameters(self)

    def forward(
        self, x: torch.Tensor, image_sizes: ImageSizes | None = None
    ) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Compute all stages.

        Args:
            x: Images, ``(N, in_channels, H, W)`` floating point, H and W at least 16, odd sizes too.
            image_sizes: ``(height, width)`` of each image in pixels, where the batch is padded at the right and at the
                bottom: what is computed for an image is then what it gives alone, whatever the padding holds. None if
                there is no padding.

        Returns:
            The map of each stage, ``(N, C_i, H_i, W_i)`` with ``H_0 = (H + 1) // 4`` and
            ``H_i = (H_{i-1} + 1) // 2``, zero where there is no image, channels-last in memory if there is no padding;
            and the cls token ``(N, C)`` of the last stage, None if that one was not built. NaN or infinity in an image
            makes NaN of its maps, and leaves the maps of other images alone unless BatchNorm normalises by the batch.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats; or if the sizes are not
                those of images in it.
        """
        images, outputs = self.compute(x, image_sizes)
        laid_out = [lay_out(output.maps, images.places, size) for output, size in zip(outputs, self.map_sizes(x))]
        if not self.stages[-1].num_prefix_tokens:
            return laid_out, None
        return laid_out, in_order(_cls_tokens(outputs[-1]), images.places)


def _cls_tokens(output: StageOutput) -> list[torch.Tensor]:
    """Those of each part, ``(n_i, C)``."""
    counts = [x.shape[0] for x in output.maps]
    lengths = [1 + x.shape[2] * x.shape[3] for x in output.maps]
    return [part[:, 0] for part in unpack(output.tokens, counts, lengths)]
