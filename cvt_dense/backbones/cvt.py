"""The registered ``CvT``: the trunk as a multi-scale backbone for mmdetection, mmsegmentation and their kin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from mmengine.registry import MODELS

from ..models.cvt.arch import Arch, get_arch
from ..models.cvt.trunk import CvTTrunk, Resolution
from ..models.per_block import PerBlock, WindowSize
from .multi_scale import Maps, MultiScale, check_outputs, maps_of
from .weights import InitCfg


@MODELS.register_module()
class CvT(MultiScale, CvTTrunk, BaseModule):
    """CvT (arXiv 2103.15808) as a multi-scale backbone, without positional embeddings, for any image size.

    Args:
        arch: ``'cvt-13'``, ``'cvt-21'``, ``'cvt-w24'``, or a dict with ``embed_dims``, ``num_heads``, ``depths`` and
            optionally ``mlp_ratio`` and ``kv_stride`` (see :class:`cvt_dense.models.cvt.arch.Arch`).
        in_channels: Channels of the image.
        out_indices: Stages whose maps are returned, counted from 0, in rising order. Stages after the last of them
            are not built. One more than the variant has, 3 for the published ones, stands for a map at twice the
            last stage's stride, 32, as other backbones have it: a strided convolution and LayerNorm, ``downsample``,
            with fresh weights on the last stage's raw map.
        out_norm: Put a fresh LayerNorm, ``norm{i}``, on each returned map of a stage (the published final norm was
            trained on the cls token alone). False returns the raw maps.
        drop_path_rate: Drop-path probability: a scalar (the last block's, rising linearly from 0), one value per
            stage, or one per block.
        window_size: Side of the windows that attention is confined to, in tokens: one value for all blocks, one per
            stage or one per block; ``'pretrain'`` for the token grid of the checkpoints' resolution, 96/48/24; None
            for exact, global attention. ``'fast'``, for all blocks, is 24 in all but the last one.
        reference_resolution: Side of the images that attention was trained on, in pixels, or ``(height, width)``: for
            images with more keys it is sharpened, and with fewer flattened (see
            :class:`~cvt_dense.models.cvt.trunk.CvTTrunk`). None leaves it as published.
        frozen_stages: Stages ``0 … frozen_stages`` are frozen: no gradients, BatchNorm and drop path in eval mode,
            whatever ``train()`` says. -1 freezes none. Output norms and ``downsample`` stay trainable.
        norm_eval: Keep all BatchNorms in eval mode, that is on their pre-trained statistics.
        with_cp: Recompute each block in the backward pass (activation checkpointing).
        ignore_padding: Compute the images of a padded batch as each one alone, their sizes being what the data samples
            of the model around the backbone say (``img_shape``). False computes the padding as a part of them, as
            other backbones do.
        init_cfg: ``dict(type='Pretrained', checkpoint=…)`` loads a checkpoint file or a published one by its name
            (see :mod:`cvt_dense.checkpoints`); None leaves the random initialisation.

    As soon as one of the returned maps is read, each parameter that is not frozen has a gradient, if only of zeros
    (see :func:`cvt_dense.backbones.outputs.tied`).

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
        ignore_padding: bool = True,
        reference_resolution: Resolution = None,
        init_cfg: InitCfg = None,
    ) -> None:
        arch = get_arch(arch)
        outputs = check_outputs(arch, out_indices, frozen_stages, init_cfg)
        super().__init__(
            arch, in_channels, drop_path_rate, window_size, with_cp, outputs.num_stages, reference_resolution
        )
        self.add_outputs(outputs, out_norm, norm_eval, ignore_padding, init_cfg)

    @classmethod
    def returned_maps(
        cls, arch: str | Mapping[str, Any] | Arch = 'cvt-13', out_indices: Sequence[int] = (0, 1, 2), **_: Any
    ) -> Maps:
        """What a backbone with these settings returns; nothing is built.

        Args:
            arch: As of the class, as are the others: those that do not matter here are taken too.
            out_indices: Likewise.

        Raises:
            ValueError: If one of these two is wrong; the message says which.
            TypeError: If ``arch`` is neither a name nor a dict.
        """
        return maps_of(get_arch(arch), out_indices)
