"""timm adapter: ``timm.create_model('cvt_13')`` and the other variants, to classify images or for feature maps."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import global_pool_nlc
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_function,
    resolve_pretrained_cfg,
)
from timm.models._features import feature_take_indices
from torch import nn

from ..checkpoints.formats import from_timm, to_timm, to_trunk
from ..checkpoints.load import check_fit
from ..checkpoints.published import PUBLISHED, Published
from ..checkpoints.sources import LOCAL_FOLDER, find_local
from ..errors import CheckpointError, reason
from ..models.cvt.arch import ARCHS, Arch, get_arch
from ..models.cvt.layers import NORM_EPS
from ..models.cvt.trunk import MIN_SIZE, build_stages, check_images, reset_parameters
from ..models.per_block import PerBlock, WindowSize
from ..models.settings import integer, is_number, shown
from ..models.stages import Stages, run_stages

_logger = logging.getLogger(__name__)

_STEM = 'stage0.patch_embed.proj.weight'
_POOLS = ('', 'token', 'avg', 'max', 'avgmax')

register_notrace_function(check_images)
torch.fx.wrap('check_images')


class CvTClassifier(nn.Module):
    """CvT (arXiv 2103.15808) as a timm model: a classifier on the cls token, or feature maps of each stage.

    Args:
        arch: Name of a variant or a dict, as :func:`cvt_dense.models.cvt.arch.get_arch` takes it.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: What the head sees: ``'token'`` (the cls token, as published), ``'avg'``, ``'max'`` or
            ``'avgmax'`` of the other tokens, ``''`` for all tokens.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Drop-path probability of the last block, rising linearly from 0; or one per stage or block.
        window_size: Side of the attention windows, as :func:`cvt_dense.models.per_block.window_sizes` takes it; None
            for exact, global attention.
        device: Where the parameters are made.
        dtype: Their type.

    Raises:
        AssertionError: If ``global_pool`` is unknown, as everywhere in timm.
        ValueError: If another setting is wrong; the message says which.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cvt-13',
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'token',
        drop_rate: float = 0.0,
        drop_path_rate: PerBlock = 0.0,
        window_size: WindowSize = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert global_pool in _POOLS, f'global_pool must be one of {_POOLS}, got {global_pool!r}'
        self.arch = get_arch(arch)
        self.in_chans = integer(in_chans, 'in_chans')
        self.num_classes = integer(num_classes, 'num_classes', least=0)
        if not is_number(drop_rate) or not 0 <= drop_rate <= 1:
            raise ValueError(f'drop_rate must lie in [0, 1], got {shown(drop_rate)}')
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f'dtype must be one of floating-point numbers, such as torch.float32, got {shown(dtype)}')
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.arch.embed_dims[-1]
        self.num_prefix_tokens = 1
        self.feature_info = [
            dict(num_chs=channels, reduction=stride, module=f'stages.{index}')
            for index, (channels, stride) in enumerate(zip(self.arch.embed_dims, self.arch.strides))
        ]
        with nullcontext() if device is None else torch.device(device):
            self.stages = Stages(build_stages(self.arch, self.in_chans, drop_path_rate, window_size))
            self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=NORM_EPS)
            self.head_drop = nn.Dropout(float(drop_rate))
            self.head = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
            reset_parameters(self)
        if dtype is not None:
            self.to(dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, besides norms and biases."""
        return {name for name, _ in self.named_parameters() if name.endswith('cls_token')}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for layer-wise learning rates: stages if ``coarse``, else blocks."""
        blocks = [
            (r'^stages\.(\d+)\.(?:patch_embed|cls_token)', (-1,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^norm', (99999,)),
        ]
        return dict(stem=r'^stages\.0\.patch_embed', blocks=r'^stages\.(\d+)' if coarse else blocks)

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass (activation checkpointing)."""
        for stage in self.stages:
            stage.with_cp = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head on; without ``global_pool`` the pooling stays as it is.

        Raises:
            AssertionError: If ``global_pool`` is unknown, or asks for the cls token of a model that lost it.
            ValueError: If ``num_classes`` is no integer, or negative.
        """
        if global_pool is not None:
            assert global_pool in _POOLS, f'global_pool must be one of {_POOLS}, got {global_pool!r}'
            assert global_pool != 'token' or self.num_prefix_tokens, 'the cls token went with the last stage'
            self.global_pool = global_pool
        self.num_classes = num_classes = integer(num_classes, 'num_classes', least=0)
        like = next(self.stages.parameters())
        head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.head = head.train(self.training) if num_classes > 0 else nn.Identity().train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the feature maps of some stages.

        Args:
            x: ``(N, in_chans, H, W)``, H and W at least 16, odd sizes too.
            indices: Stages to return; an int for the last so many, None for all.
            norm: Put the final norm on the last stage's map.
            stop_early: Leave out the stages after the last one returned.
            output_fmt: Only ``'NCHW'``.
            intermediates_only: Return the maps alone.

        Returns:
            The maps, contiguous ``(N, C_i, H_i, W_i)``; before them, unless they are asked for alone, what
            :meth:`forward_features` returns (the last tokens computed, if stopped early).
        """
        assert output_fmt == 'NCHW', 'output_fmt must be NCHW'
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        check_images(x, self.in_chans)
        outputs = run_stages(self.stages[: max_index + 1] if stop_early else self.stages, x)
        maps = [output for _, output in outputs]
        tokens = outputs[-1][0]
        if len(outputs) == len(self.stages):
            tokens = self.norm(tokens)
            if norm:
                maps[-1] = self.stages[-1].to_map(tokens, maps[-1].shape[2:])
        intermediates = [output.contiguous() for index, output in enumerate(maps) if index in take_indices]
        return intermediates if intermediates_only else (tokens, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the feature maps of some stages do not need; returns the stages kept for output."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]['num_chs']
            self.num_prefix_tokens = 0
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        if prune_head or prune_end:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of the last stage after the final norm, the cls token first: ``(N, 1 + H_i * W_i, C)``.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats.
        """
        if not torch.jit.is_scripting():
            check_images(x, self.in_chans)
        tokens, _ = self.stages(x)[-1]
        return self.norm(tokens)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of what :meth:`forward_features` returns, or what the head sees of it."""
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of ``(N, in_chans, H, W)`` images, H and W at least 16, odd sizes too."""
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: CvTClassifier) -> dict[str, torch.Tensor]:
    """Bring a checkpoint of any known format to the names of a timm model.

    Raises:
        CheckpointError: If it holds no CvT weights, or does not cover the model's stages.
    """
    name = f'{model.pretrained_cfg["architecture"]}.{model.pretrained_cfg["tag"]}'.rstrip('.')
    converted = to_trunk(state_dict)
    if converted is None:
        raise CheckpointError(f'checkpoint for {name} holds no CvT weights of any known format')
    tensors, found = converted
    expected = {key: tensor for key, tensor in from_timm(model.state_dict()).items() if key.startswith('stage')}
    if model.in_chans != model.pretrained_cfg['input_size'][0] and _STEM in tensors:
        expected[_STEM] = tensors[_STEM]  # timm adapts it to the model's channels afterwards
    check_fit(name, tensors, expected, model.arch, model.arch.num_stages)
    _logger.info('%s: loaded %d tensors of the trunk (%s format)', name, len(expected), found)
    return to_timm(tensors)


def _cfg(published: Published) -> dict[str, Any]:
    """timm's description of a published checkpoint. The transforms are those that the authors evaluated with."""
    side = published.resolution
    return dict(
        hf_hub_id=published.repo,
        num_classes=1000,
        input_size=(3, side, side),
        min_input_size=(3, MIN_SIZE, MIN_SIZE),
        pool_size=(side // 16, side // 16),
        crop_pct=0.875 if side == 224 else 1.0,
        crop_mode='center' if side == 224 else 'squash',
        interpolation='bicubic',
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv='stages.0.patch_embed.proj',
        classifier='head',
        paper_ids='arXiv:2103.15808',
        paper_name='CvT: Introducing Convolutions to Vision Transformers',
        origin_url='https://github.com/microsoft/CvT',
    )


default_cfgs = generate_default_cfgs(
    {f'{entry.arch.replace("-", "_")}.{entry.timm_tag}': _cfg(entry) for entry in PUBLISHED.values()}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    arch = variant.replace('_', '-')
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    if pretrained and not overlay.keys() & {'file', 'url', 'hf_hub_id', 'state_dict'}:
        tag = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg')).tag
        published = next((p for p in PUBLISHED.values() if (p.arch, p.timm_tag) == (arch, tag)), None)
        local = find_local(published) if published else None
        if local:
            overlay['file'] = str(local)
    try:
        return build_model_with_cfg(
            CvTClassifier,
            variant,
            pretrained,
            pretrained_filter_fn=checkpoint_filter_fn,
            pretrained_cfg_overlay=overlay,
            feature_cfg=dict(out_indices=(0, 1, 2), feature_cls='getter'),
            **(dict(arch=arch) | kwargs),
        )
    except OSError as error:  # the Hub's errors, and those of a file that is not there
        raise CheckpointError(
            f"weights of {variant} are not available ({reason(error)}). Without network, put the authors' files into a "
            f'folder and set {LOCAL_FOLDER}, or give one with pretrained_cfg_overlay=dict(file=PATH)'
        ) from error


def _register(name: str, arch: Arch) -> None:
    """Put a variant's model function into this module and into timm's registry: ``cvt_13`` for ``'cvt-13'``."""
    variant = name.replace('-', '_')

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return _create(variant, pretrained, **kwargs)

    depths, widths = ('/'.join(map(str, values)) for values in (arch.depths, arch.embed_dims))
    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f'{name.upper().replace("CVT", "CvT")}: {depths} blocks of {widths} channels.'
    globals()[variant] = register_model(create)


for _name, _arch in ARCHS.items():
    _register(_name, _arch)
