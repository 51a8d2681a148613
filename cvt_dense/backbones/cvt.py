"""The registered ``CvT``: the trunk as a multi-scale backbone for mmdetection, mmsegmentation and their kin."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from mmengine.registry import FUNCTIONS, MODELS
from torch import nn

from ..checkpoints import load_pretrained
from ..models.cvt.arch import Arch, get_arch
from ..models.cvt.layers import NORM_EPS, Block
from ..models.cvt.trunk import CvTTrunk
from ..models.norms import keeps_statistics
from ..models.per_block import PerBlock, WindowSize
from ..models.settings import boolean, is_integer, is_sequence, shown
from ..registry import type_name
from .weights import InitCfg, check_init_cfg, read_init_cfg


@MODELS.register_module()
class CvT(CvTTrunk, BaseModule):
    """CvT (arXiv 2103.15808) as a multi-scale backbone, without positional embeddings, for any image size.

    Args:
        arch: ``'cvt-13'``, ``'cvt-21'``, ``'cvt-w24'``, or a dict with ``embed_dims``, ``num_heads``, ``depths`` and
            optionally ``mlp_ratio`` and ``kv_stride`` (see :class:`cvt_dense.models.cvt.arch.Arch`).
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, counted from 0, in rising order. Stages after the last of them
            are not built.
        out_norm: Put a fresh LayerNorm, ``norm{i}``, on each returned map (the published final norm was trained on
            the cls token alone). False returns the raw maps.
        drop_path_rate: Drop-path probability: a scalar (the last block's, rising linearly from 0), one value per
            stage, or one per block.
        window_size: Side of the windows that attention is confined to, in tokens: one value for all blocks, one per
            stage or one per block; ``'pretrain'`` for the token grid of the checkpoints' resolution, 96/48/24; None
            for exact, global attention.
        frozen_stages: Stages ``0 … frozen_stages`` are frozen: no gradients, BatchNorm and drop path in eval mode,
            whatever ``train()`` says. -1 freezes none. Output norms stay trainable.
        norm_eval: Keep all BatchNorms in eval mode, that is on their pre-trained statistics.
        with_cp: Recompute each block in the backward pass (activation checkpointing).
        init_cfg: ``dict(type='Pretrained', checkpoint=…)`` loads a checkpoint file or a published one by its name
            (see :mod:`cvt_dense.checkpoints`); None leaves the random initialisation.

    Attributes:
        out_channels (tuple[int, ...]): Channels of the returned maps.
        out_strides (tuple[int, ...]): Their strides relative to the image.

    Raises:
        ValueError: If a setting is wrong; the message says which.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cvt-13',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2),
        out_norm: bool = True,
        drop_path_rate: PerBlock = 0.1,
        window_size: WindowSize = None,
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        init_cfg: InitCfg = None,
    ) -> None:
        arch = get_arch(arch)
        out_indices = _check_out_indices(out_indices, arch.num_stages)
        last = out_indices[-1]
        if not is_integer(frozen_stages) or not -1 <= frozen_stages <= last:
            raise ValueError(f'frozen_stages must lie between -1 (none) and {last}, got {shown(frozen_stages)}')
        check_init_cfg(init_cfg)
        super().__init__(arch, in_channels, drop_path_rate, window_size, with_cp, num_stages=last + 1)
        self.out_indices = out_indices
        self.frozen_stages = int(frozen_stages)
        self.norm_eval = boolean(norm_eval, 'norm_eval')
        self.init_cfg = copy.deepcopy(init_cfg)
        self.out_channels = tuple(arch.embed_dims[i] for i in out_indices)
        self.out_strides = tuple(arch.strides[i] for i in out_indices)
        for index, channels in zip(out_indices, self.out_channels):
            norm = nn.LayerNorm(channels, eps=NORM_EPS) if boolean(out_norm, 'out_norm') else nn.Identity()
            self.add_module(f'norm{index}', norm)
        self._freeze()

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; a pre-trained checkpoint covers the whole trunk or is refused.

        As in all of mmengine, a second call changes nothing. Each checkpoint, or that there is none, is a line in the
        log.

        Raises:
            CheckpointError: If the checkpoint is not found, cannot be read or does not fit, or ``init_cfg`` names none
                or has unknown keys; the message says why.
        """
        given = self.init_cfg
        initialization = read_init_cfg(given)
        is_first, is_standalone = not self.is_init, not hasattr(self, '_params_init_info')
        # BaseModule would load a pre-trained one with strict=False and only warn of what is missing.
        self.init_cfg = initialization.others
        try:
            super().init_weights()
        finally:
            self.init_cfg = given
        if not is_first:
            return
        for source in initialization.pretrained:
            report = load_pretrained(self, source.checkpoint, source.prefix)
            print_log(f'CvT: {report}', logger='current')
        if is_standalone and not initialization.pretrained:
            made = ' or as '.join(['random', *(f'{type_name(entry)} made them' for entry in initialization.others)])
            count = len(list(self.parameters()))
            print_log(f'CvT: {count} tensors are {made}: init_cfg names no checkpoint', logger='current')

    def _dump_init_info(self) -> None:
        """Leave out mmengine's report of a model that is initialised by itself: four lines for each parameter."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: ``(N, in_channels, H, W)`` floating point, H and W at least 16, odd sizes too.

        Returns:
            One map per entry of ``out_indices``: ``(N, C_i, H_i, W_i)`` with ``H_0 = (H + 1) // 4`` and
            ``H_i = (H_{i-1} + 1) // 2``. They are contiguous, whatever the input's memory format: mmcv's RoIAlign
            silently misreads any other layout.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats.
        """
        maps, _ = super().forward(x)
        return tuple(self._output(maps[index], index) for index in self.out_indices)

    def train(self, mode: bool = True) -> CvT:
        """Switch to training (or eval) mode; what is frozen stays in eval mode."""
        super().train(mode)
        self._freeze()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Where a parameter is, for layer-wise learning rates (see :mod:`cvt_dense.engine.layer_decay`).

        Each stage's embedding (and cls token) is a layer, and each block. The output norms are fresh, like heads.

        Args:
            param_name: Its name in the model that the backbone is a part of.
            prefix: What the backbone's own parameters begin with there.

        Returns:
            The layer, counted from 0, and the number of layers; whatever is not in the trunk is in the last.
        """
        layers = [len(stage.blocks) + 1 for stage in self.stages]
        match = re.match(r'stage(\d+)\.(?:blocks\.(\d+)\.)?', param_name.removeprefix(prefix))
        if match is None or not param_name.startswith(prefix):
            return sum(layers), sum(layers) + 1
        stage, block = int(match[1]), match[2]
        return sum(layers[:stage]) + (0 if block is None else 1 + int(block)), sum(layers) + 1

    def _output(self, x: torch.Tensor, index: int) -> torch.Tensor:
        norm = getattr(self, f'norm{index}')
        return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).contiguous()

    def _freeze(self) -> None:
        for stage in self.stages[: self.frozen_stages + 1]:
            stage.eval()
            stage.requires_grad_(False)
        if self.norm_eval:
            for module in self.modules():
                if keeps_statistics(module):
                    module.eval()


def _check_out_indices(out_indices: Sequence[int], num_stages: int) -> tuple[int, ...]:
    indices = list(out_indices) if is_sequence(out_indices) else []
    are_stages = all(is_integer(index) and 0 <= index < num_stages for index in indices)
    if not indices or not are_stages or indices != sorted(set(indices)):
        raise ValueError(
            f'out_indices must be a list of stages in rising order, from 0 to {num_stages - 1}, got '
            f'{shown(out_indices)}'
        )
    return tuple(int(index) for index in indices)


@FUNCTIONS.register_module()
def wrap_cvt_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Policy of FSDP, as ``auto_wrap_policy``: each block of CvT is gathered, computed and let go by itself.

    Args:
        module: A part of the model.
        recurse: Whether FSDP asks if it should look into the module, and not if it should wrap it.
        nonwrapped_numel: Parameters that would be wrapped.
    """
    return recurse or isinstance(module, Block)
