"""The trunk of CvT: an image in, one feature map per stage out. Plain PyTorch; the adapters build on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from timm.layers import trunc_normal_
from torch import nn
from torch.utils.checkpoint import checkpoint

from .arch import Arch, PerBlock, drop_path_rates, get_arch, per_block
from .layers import Block, ConvEmbed, tokens_to_map

#: Below this the deepest map has no pixel left for a sub-sampled key.
MIN_SIZE = 16


class Stage(nn.Module):
    """One stage of CvT: convolutional token embedding, then blocks; a cls token where the variant has one."""

    def __init__(self, patch_embed: ConvEmbed, blocks: list[Block], cls_token_dim: int | None = None) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = None if cls_token_dim is None else nn.Parameter(torch.zeros(1, 1, cls_token_dim))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: torch.Tensor, with_cp: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute the stage.

        Args:
            x: ``(N, C_in, H_in, W_in)``, any memory layout.
            with_cp: Recompute each block in the backward pass instead of keeping its activations.

        Returns:
            The map, ``(N, C, H, W)`` (channels-last in memory), and the cls token, ``(N, C)``, or None.
        """
        tokens, size = self.patch_embed(x)
        if self.cls_token is not None:
            tokens = torch.cat((self.cls_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens), dim=1)
        for block in self.blocks:
            if with_cp and torch.is_grad_enabled():
                tokens = checkpoint(
                    block,
                    tokens,
                    size,
                    use_reentrant=False,
                    context_fn=lambda b=block: _recompute_contexts(b),
                )
            else:
                tokens = block(tokens, size)
        if self.cls_token is None:
            return tokens_to_map(tokens, size), None
        return tokens_to_map(tokens[:, 1:], size), tokens[:, 0]


class CvTTrunk(nn.Module):
    """The stages of CvT (arXiv 2103.15808, figure 2), parameters named as in the published weights.

    Args:
        arch: ``'cvt-13'``, ``'cvt-21'``, ``'cvt-w24'``, an :class:`~cvt_dense.arch.Arch` or a dict of its attributes.
        in_channels: Channels of the image.
        drop_path_rate: Drop-path probability: a scalar (the last block's, rising linearly from 0), one value per
            stage, or one per block.
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
        with_cp: bool = False,
        num_stages: int | None = None,
    ) -> None:
        super().__init__()
        self.arch = get_arch(arch)
        self.in_channels = in_channels
        self.with_cp = with_cp
        self.num_stages = self.arch.num_stages if num_stages is None else num_stages
        mlp_ratio = per_block(self.arch.mlp_ratio, self.arch.depths, 'mlp_ratio')
        kv_stride = per_block(self.arch.kv_stride, self.arch.depths, 'kv_stride')
        drop_path = drop_path_rates(drop_path_rate, self.arch.depths)
        for index in range(self.num_stages):
            dim, heads = self.arch.embed_dims[index], self.arch.num_heads[index]
            with_cls_token = index == self.arch.num_stages - 1
            if index == 0:
                patch_embed = ConvEmbed(in_channels, dim, kernel_size=7, stride=4, padding=2)
            else:
                patch_embed = ConvEmbed(self.arch.embed_dims[index - 1], dim, kernel_size=3, stride=2, padding=1)
            blocks = [
                Block(dim, heads, *settings, with_cls_token)
                for settings in zip(mlp_ratio[index], kv_stride[index], drop_path[index])
            ]
            self.add_module(f'stage{index}', Stage(patch_embed, blocks, dim if with_cls_token else None))
        self.reset_parameters()

    @property
    def stages(self) -> list[Stage]:
        return [getattr(self, f'stage{index}') for index in range(self.num_stages)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the weights anew: linear layers and cls token from N(0, 0.02²) cut at ±2, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, (nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)):
                module.reset_parameters()
            elif isinstance(module, Stage) and module.cls_token is not None:
                trunc_normal_(module.cls_token, std=0.02)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor | None]:
        """Compute all stages.

        Args:
            x: Image, ``(N, in_channels, H, W)`` floating point, H and W at least 16, odd sizes too.

        Returns:
            The map of each stage, ``(N, C_i, H_i, W_i)`` with ``H_0 = (H + 1) // 4`` and
            ``H_i = (H_{i-1} + 1) // 2``, channels-last in memory; and the cls token ``(N, C)`` of the last stage,
            None if that one was not built.

        Raises:
            ValueError: If the input has another shape, is too small, or does not hold floats.
        """
        self._check_input(x)
        maps, cls_token = [], None
        for stage in self.stages:
            x, cls_token = stage(x, self.with_cp)
            maps.append(x)
        return maps, cls_token

    def _check_input(self, x: torch.Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'CvT takes (N, {self.in_channels}, H, W) images, got shape {tuple(x.shape)}')
        if x.shape[0] == 0 or min(x.shape[2:]) < MIN_SIZE:
            raise ValueError(
                f'CvT takes at least one image of at least {MIN_SIZE}x{MIN_SIZE} pixels, got shape {tuple(x.shape)}'
            )
        if not x.is_floating_point():
            raise ValueError(f'CvT takes floating-point images, got {x.dtype}; convert them with .float() first')


@contextmanager
def _keep_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm in training mode normalise by the batch once more without counting it a second time."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1


def _recompute_contexts(block: Block) -> tuple[AbstractContextManager, AbstractContextManager]:
    """Contexts of a checkpointed block's forward pass and of its recomputation."""
    return nullcontext(), _keep_running_statistics(block)
