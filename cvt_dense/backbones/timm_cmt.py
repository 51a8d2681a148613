"""timm adapter: ``timm.create_model('cmt_s')`` and the other variants, to classify images or for feature maps."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..checkpoints.published import PUBLISHED, Published
from ..models.cmt.arch import ARCHS, Arch, Resolution, get_arch
from ..models.cmt.trunk import build_stages, reset_parameters
from ..models.images import check_images
from ..models.per_block import PerBlock, WindowSize
from ..models.settings import image_size, integer
from ..models.stages import Stages
from .timm_model import StagedModel, model_function

_POOLS = ('', 'avg', 'max', 'avgmax')
#: Channels of the convolution in front of the classifier.
_HIDDEN = 1280

torch.fx.wrap('check_images')


class CMTClassifier(StagedModel):
    """CMT (arXiv 2107.06263) as a timm model: a classifier, or feature maps of each stage.

    Args:
        arch: Name of a variant or a dict, as :func:`cvt_dense.models.cmt.arch.get_arch` takes it.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: How the map is pooled behind its last convolution: ``'avg'`` (as published), ``'max'``,
            ``'avgmax'``, or not at all, ``''``, which leaves no place for a head.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Drop-path probability of the last block, rising linearly from 0; or one per stage or block.
        window_size: Side of the attention windows, as :func:`cvt_dense.models.per_block.window_sizes` takes it; None
            for exact, global attention.
        img_size: Side of the images that the position bias is made for, in pixels, or ``(height, width)``; None for
            the variant's own. Images of other sizes are taken too.
        bias_interpolation: How the position bias is brought to other sizes: ``'bicubic'`` or ``'bilinear'``.
        device: Where the parameters are made.
        dtype: Their type.

    Raises:
        AssertionError: If ``global_pool`` is unknown, as everywhere in timm.
        ValueError: If another setting is wrong; the message says which.
    """

    family = 'CMT'

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cmt-s',
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: PerBlock = 0.0,
        window_size: WindowSize = None,
        img_size: Resolution | None = None,
        bias_interpolation: str = 'bicubic',
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        arch = get_arch(arch)
        if img_size is not None:
            arch = replace(arch, pretrain_size=image_size(img_size, arch.min_size, 'img_size'))
        self.set_up(arch, arch.min_size, in_chans, num_classes, drop_rate, dtype)
        _check_pool(global_pool, self.num_classes)
        self.num_features, self.head_hidden_size = arch.embed_dims[-1], _HIDDEN
        with nullcontext() if device is None else torch.device(device):
            self.stages = Stages(
                build_stages(arch, self.in_chans, drop_path_rate, window_size, bias_interpolation=bias_interpolation)
            )
            self.conv_head: nn.Module = nn.Conv2d(self.num_features, _HIDDEN, 1)
            self.norm_head: nn.Module = nn.BatchNorm2d(_HIDDEN)
            self.act_head: nn.Module = nn.SiLU()
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
            self.head_drop = nn.Dropout(float(drop_rate))
            self.head = nn.Linear(_HIDDEN, self.num_classes) if self.num_classes else nn.Identity()
            reset_parameters(self)
        if dtype is not None:
            self.to(dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, besides norms and biases."""
        return {name for name, _ in self.named_parameters() if name.endswith('relative_pos')}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for layer-wise learning rates: stages if ``coarse``, else blocks."""
        blocks = [
            (r'^stages\.(\d+)\.(?:patch_embed|relative_pos)', (-1,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^(?:conv|norm)_head', (99999,)),
        ]
        return dict(stem=r'^stages\.0\.stem', blocks=r'^stages\.(\d+)' if coarse else blocks)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a fresh head on; without ``global_pool`` the pooling stays as it is.

        Raises:
            AssertionError: If ``global_pool`` is unknown, or leaves no place for a head.
            ValueError: If ``num_classes`` is no integer, or negative.
        """
        num_classes = integer(num_classes, 'num_classes', least=0)
        if global_pool is not None:
            _check_pool(global_pool, num_classes)
            pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
            self.global_pool = pool.train(self.training)
        self.num_classes = num_classes
        self.head = self.new_head(num_classes, self.head_hidden_size)

    def features_of(self, tokens: torch.Tensor, maps: list[torch.Tensor], norm: bool, is_last: bool) -> torch.Tensor:
        """The last map; there is no norm for it."""
        return maps[-1]

    def prune_top(self, prune_norm: bool, prune_head: bool, prune_end: bool) -> None:
        """Remove the classifier with the convolution in front of it."""
        if prune_head or prune_end:
            self.conv_head, self.norm_head, self.act_head = nn.Identity(), nn.Identity(), nn.Identity()
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, '')

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The map of the last stage, ``(N, C, H_i, W_i)``.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats.
        """
        if not torch.jit.is_scripting():
            check_images(x, self.in_chans, self.min_size, self.family)
        _, maps = self.stages([x])[-1]
        return maps[0]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of what :meth:`forward_features` returns, or what the head sees of it."""
        x = self.act_head(self.norm_head(self.conv_head(x)))
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of ``(N, in_chans, H, W)`` images, of any size from 31 pixels on, odd ones too."""
        return self.forward_head(self.forward_features(x))


def _check_pool(global_pool: str, num_classes: int) -> None:
    assert global_pool in _POOLS, f'global_pool must be one of {_POOLS}, got {global_pool!r}'
    assert global_pool or not num_classes, "global_pool '' leaves no place for a head: set num_classes=0"


def _cfg(published: Published) -> dict[str, Any]:
    """timm's description of a published checkpoint. The transforms are those that the authors evaluated with."""
    side = published.resolution
    return dict(
        url=published.url,
        num_classes=1000,
        input_size=(3, side, side),
        min_input_size=(3, ARCHS[published.arch].min_size, ARCHS[published.arch].min_size),
        pool_size=(side // 32, side // 32),
        crop_pct=0.875,
        crop_mode='center',
        interpolation='bicubic',
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv='stages.0.stem.conv1',
        classifier='head',
        paper_ids='arXiv:2107.06263',
        paper_name='CMT: Convolutional Neural Networks Meet Vision Transformers',
        origin_url='https://github.com/ggjy/CMT.pytorch',
    )


default_cfgs = generate_default_cfgs(
    {
        f'{entry.arch.replace("-", "_")}.{entry.timm_tag}': _cfg(entry)
        for entry in PUBLISHED.values()
        if entry.arch in ARCHS
    }
)

for _name, _arch in ARCHS.items():
    globals()[_name.replace('-', '_')] = register_model(model_function(CMTClassifier, _name, _arch))
