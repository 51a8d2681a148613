"""The trunk of CvT: an image in, one feature map per stage out. Plain PyTorch; the adapters build on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn

from ..per_block import PerBlock, WindowSize, drop_path_rates, per_block, window_sizes
from ..recompute import recomputed
from ..settings import boolean, integer
from ..stages import run_stages
from ..tokens import Size, tokens_to_map
from .arch import Arch, get_arch
from .layers import Block, ConvEmbed

#: Side of the smallest image, in pixels: the stride of the deepest stage of the published variants.
MIN_SIZE = 16


class Stage(nn.Module):
    """One stage of CvT: convolutional token embedding, then blocks; a cls token where the variant has one.

    Attributes:
        with_cp: Recompute each block in the backward pass instead of keeping its activations.
    """

    def __init__(self, patch_embed: ConvEmbed, blocks: list[Block], cls_token_dim: int | None = None) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = None if cls_token_dim is None else nn.Parameter(torch.zeros(1, 1, cls_token_dim))
        self.blocks = nn.ModuleList(blocks)
        self.num_prefix_tokens = 0 if cls_token_dim is None else 1
        self.with_cp = False

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Size]:
        """Compute the stage.

        Args:
            x: ``(N, C_in, H_in, W_in)``, any memory layout.

        Returns:
            The tokens, ``(N, H * W, C)`` or, with a cls token in front, ``(N, 1 + H * W, C)``; and ``(H, W)``.
        """
        tokens, size = self.patch_embed(x)
        if self.cls_token is not None:
            cls_token = self.cls_token.expand(tokens.shape[0], -1, -1).to(tokens.dtype)
            tokens = torch.cat((cls_token, tokens), dim=1)
        for block in self.blocks:
            if self.with_cp and not torch.jit.is_scripting():
                tokens = recomputed(block, tokens, size)
            else:
                tokens = block(tokens, size)
        return tokens, size

    def to_map(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """View the stage's tokens, less the cls token, as an ``(N, C, H, W)`` map (channels-last in memory)."""
        return tokens_to_map(tokens[:, self.num_prefix_tokens :], size)


def build_stages(
    arch: Arch,
    in_channels: int = 3,
    drop_path_rate: PerBlock = 0.0,
    window_size: WindowSize = None,
    num_stages: int | None = None,
) -> list[Stage]:
    """Build the stages of a variant with fresh weights.

    Args:
        arch: The variant.
        in_channels: Channels of the image.
        drop_path_rate: As :func:`~cvt_dense.models.per_block.drop_path_rates` takes it.
        window_size: As :func:`~cvt_dense.models.per_block.window_sizes` takes it; ``'pretrain'`` for the variant's
            ``pretrain_grid``.
        num_stages: Only the first so many; all by default. The last stage of the variant has the cls token.

    Raises:
        ValueError: If the drop-path rate, the window size or the number of stages is wrong.
    """
    if num_stages is None:
        num_stages = arch.num_stages
    elif integer(num_stages, 'num_stages') > arch.num_stages:
        raise ValueError(f'num_stages must be at most {arch.num_stages}, as many as the variant has, got {num_stages}')
    mlp_ratio = per_block(arch.mlp_ratio, arch.depths, 'mlp_ratio')
    kv_stride = per_block(arch.kv_stride, arch.depths, 'kv_stride')
    windows = window_sizes(window_size, arch.depths, arch.pretrain_grid)
    drop_path = drop_path_rates(drop_path_rate, arch.depths)
    stages = []
    for index in range(num_stages):
        dim, heads = arch.embed_dims[index], arch.num_heads[index]
        with_cls_token = index == arch.num_stages - 1
        if index == 0:
            patch_embed = ConvEmbed(in_channels, dim, kernel_size=7, stride=4, padding=2)
        else:
            patch_embed = ConvEmbed(arch.embed_dims[index - 1], dim, kernel_size=3, stride=2, padding=1)
        blocks = [
            Block(dim, heads, ratio, stride, drop, with_cls_token, window)
            for ratio, stride, drop, window in zip(mlp_ratio[index], kv_stride[index], drop_path[index], windows[index])
        ]
        stages.append(Stage(patch_embed, blocks, dim if with_cls_token else None))
    return stages


@torch.no_grad()
def reset_parameters(model: nn.Module) -> None:
    """Draw a model's weights anew: linear layers and cls token from N(0, 0.02²) cut at ±2, zero biases."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)):
            module.reset_parameters()
        elif isinstance(module, Stage) and module.cls_token is not None:
            trunc_normal_(module.cls_token, std=0.02)


def check_images(x: torch.Tensor, in_channels: int) -> None:
    """Refuse input that CvT cannot take.

    Only what is known without waiting for a GPU is checked, so NaN is not. A wrong device or precision is left to
    torch to report: hooks that offload weights, and autocast, may fix it on the way.

    Raises:
        TypeError: If ``x`` is not a tensor.
        ValueError: If ``x`` is not ``(N, in_channels, H, W)``, holds no images or too small ones, or no floats.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f'CvT takes one tensor of (N, {in_channels}, H, W) images, got {type(x).__name__}')
    if x.ndim != 4 or x.shape[1] != in_channels:
        raise ValueError(f'CvT takes (N, {in_channels}, H, W) images, got shape {tuple(x.shape)}')
    # Not min() of both: torch 2.6 would compile anew for upright images, asking which side is the shorter one.
    if x.shape[0] == 0 or x.shape[2] < MIN_SIZE or x.shape[3] < MIN_SIZE:
        raise ValueError(
            f'CvT takes at least one image of at least {MIN_SIZE}x{MIN_SIZE} pixels, got shape {tuple(x.shape)}'
        )
    if not x.is_floating_point():
        raise ValueError(f'CvT takes floating-point images, got {x.dtype}; convert them with .float() first')


torch.fx.wrap('check_images')  # a trace of torch.fx is for images of any size, and has none to look at


class CvTTrunk(nn.Module):
    """The stages of CvT (arXiv 2103.15808, figure 2), parameters named as in the published weights.

    Args:
        arch: ``'cvt-13'``, ``'cvt-21'``, ``'cvt-w24'``, an :class:`~cvt_dense.models.cvt.Arch` or a dict of its
            attributes.
        in_channels: Channels of the image.
        drop_path_rate: Drop-path probability: a scalar (the last block's, rising linearly from 0), one value per
            stage, or one per block.
        window_size: Side of the windows that attention is confined to, in tokens: one value for all blocks, one per
            stage or one per block; ``'pretrain'`` for the token grid of the checkpoints' resolution, 96/48/24; None
            for exact, global attention.
        with_cp: Recompute each block in the backward pass (activation checkpointing).
        num_stages: Build only the first so many stages; all by default.

    Raises:
        ValueError: If a setting is wrong; the message says which.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cvt-13',
        in_channels: int = 3,
        drop_path_rate: PerBlock = 0.0,
        window_size: WindowSize = None,
        with_cp: bool = False,
        num_stages: int | None = None,
    ) -> None:
        super().__init__()
        self.arch = get_arch(arch)
        self.in_channels = integer(in_channels, 'in_channels')
        stages = build_stages(self.arch, self.in_channels, drop_path_rate, window_size, num_stages)
        self.num_stages = len(stages)
        for index, stage in enumerate(stages):
            stage.with_cp = boolean(with_cp, 'with_cp')
            self.add_module(f'stage{index}', stage)
        self.reset_parameters()

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f'stage{index}') for index in range(self.num_stages)]

    def reset_parameters(self) -> None:
        """Draw the weights anew, see :func:`reset_parameters`."""
        reset_parameters(self)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Compute all stages.

        Args:
            x: Image, ``(N, in_channels, H, W)`` floating point, H and W at least 16, odd sizes too.

        Returns:
            The map of each stage, ``(N, C_i, H_i, W_i)`` with ``H_0 = (H + 1) // 4`` and
            ``H_i = (H_{i-1} + 1) // 2``, channels-last in memory; and the cls token ``(N, C)`` of the last stage,
            None if that one was not built. NaN or infinity in an image makes NaN of its maps, and leaves the maps of
            other images alone unless BatchNorm normalises by the batch.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats.
        """
        check_images(x, self.in_channels)
        stages = self.stages
        outputs = run_stages(stages, x)
        maps = [output for _, output in outputs]
        cls_token = outputs[-1][0][:, 0] if stages[-1].num_prefix_tokens else None
        return maps, cls_token
