"""timm adapter: ``timm.create_model('cvt_13')`` and the other variants, to classify images or for feature maps."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import global_pool_nlc
from timm.models import generate_default_cfgs, register_model
from torch import nn

from ..checkpoints.published import PUBLISHED, Published
from ..models.cvt.arch import ARCHS, MIN_SIZE, Arch, get_arch
from ..models.cvt.layers import NORM_EPS
from ..models.cvt.trunk import Resolution, build_stages, reset_parameters
from ..models.images import check_images
from ..models.per_block import PerBlock, WindowSize
from ..models.settings import integer
from ..models.stages import Stages
from ..models.tokens import tokens_to_map
from .timm_model import StagedModel, model_function

_POOLS = ('', 'token', 'avg', 'max', 'avgmax')

torch.fx.wrap('check_images')


class CvTClassifier(StagedModel):
    """CvT (arXiv 2103.15808) as a timm model: a classifier on the cls token, or feature maps of each stage.

    Args:
        arch: Name of a variant or a dict, as :func:`cvt_dense.models.cvt.arch.get_arch` takes it.
        in_chans: Channels of the image.
        num_classes: Classes of the head; 0 for none.
        global_pool: What the head sees: ``'token'`` (the cls token, as published), ``'avg'``, ``'max'`` or
            ``'avgmax'`` of the other tokens, ``''`` for all tokens.
        drop_rate: Dropout probability before the head.
        drop_path_rate: Drop-path probability of the last block, rising linearly from 0; or one per stage or block.
        window_size: Side of the attention windows, as :class:`~cvt_dense.models.cvt.trunk.CvTTrunk` takes it; None for
            exact, global attention.
        reference_resolution: Side of the images that attention was trained on, in pixels, as
            :class:`~cvt_dense.models.cvt.trunk.CvTTrunk` takes it; None leaves attention as published.
        device: Where the parameters are made.
        dtype: Their type.

    Raises:
        AssertionError: If ``global_pool`` is unknown, as everywhere in timm.
        ValueError: If another setting is wrong; the message says which.
    """

    family = 'CvT'

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Arch = 'cvt-13',
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'token',
        drop_rate: float = 0.0,
        drop_path_rate: PerBlock = 0.0,
        window_size: WindowSize = None,
        reference_resolution: Resolution = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        assert global_pool in _POOLS, f'global_pool must be one of {_POOLS}, got {global_pool!r}'
        arch = get_arch(arch)
        self.set_up(arch, arch.min_size, in_chans, num_classes, drop_rate, dtype)
        self.global_pool = global_pool
        self.num_features = self.head_hidden_size = self.arch.embed_dims[-1]
        self.num_prefix_tokens = 1
        with nullcontext() if device is None else torch.device(device):
            self.stages = Stages(
                build_stages(
                    self.arch,
                    self.in_chans,
                    drop_path_rate,
                    window_size,
                    reference_resolution=reference_resolution,
                )
            )
            self.norm: nn.Module = nn.LayerNorm(self.num_features, eps=NORM_EPS)
            self.head_drop = nn.Dropout(float(drop_rate))
            self.head = nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()
            reset_parameters(self)
        if dtype is not None:
            self.to(dtype)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay should leave alone, besides norms and biases."""
        return {name for name, _ in self.named_parameters() if name.endswith(('cls_token', 'pos_embed.weight'))}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters by depth, for layer-wise learning rates: stages if ``coarse``, else blocks."""
        blocks = [
            (r'^stages\.(\d+)\.(?:stem|patch_embed|pos_embed|cls_token)', (-1,)),
            (r'^stages\.(\d+)\.blocks\.(\d+)', None),
            (r'^norm', (99999,)),
        ]
        return dict(stem=r'^stages\.0\.(?:stem|patch_embed)', blocks=r'^stages\.(\d+)' if coarse else blocks)

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
        self.head = self.new_head(num_classes, self.num_features)

    def features_of(self, tokens: torch.Tensor, maps: list[torch.Tensor], norm: bool, is_last: bool) -> torch.Tensor:
        """The tokens, after the final norm if the last stage made them; with ``norm`` its map is that of these."""
        if is_last:
            tokens = self.norm(tokens)
            if norm:
                maps[-1] = tokens_to_map(tokens[:, self.num_prefix_tokens :], maps[-1].shape[2:])
        return tokens

    def prune_top(self, prune_norm: bool, prune_head: bool, prune_end: bool) -> None:
        """Remove the final norm and the head; without the last stage, nothing is left to use them on."""
        if prune_end:
            self.head_hidden_size = self.num_features
            self.num_prefix_tokens = 0
        if prune_norm or prune_end:
            self.norm = nn.Identity()
        if prune_head or prune_end:
            self.reset_classifier(0, '')

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of the last stage after the final norm, the cls token first: ``(N, 1 + H_i * W_i, C)``.

        Raises:
            TypeError: If the input is not a tensor.
            ValueError: If the input has another shape, is too small, or does not hold floats.
        """
        if not torch.jit.is_scripting():
            check_images(x, self.in_chans, self.min_size, self.family)
        tokens, _ = self.stages([x])[-1]
        return self.norm(tokens)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Logits ``(N, num_classes)`` of what :meth:`forward_features` returns, or what the head sees of it."""
        x = global_pool_nlc(x, pool_type=self.global_pool, num_prefix_tokens=self.num_prefix_tokens)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of ``(N, in_chans, H, W)`` images, H and W at least 16, odd sizes too."""
        return self.forward_head(self.forward_features(x))


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
    {
        f'{entry.arch.replace("-", "_")}.{entry.timm_tag}': _cfg(entry)
        for entry in PUBLISHED.values()
        if entry.arch in ARCHS
    }
)


for _name, _arch in ARCHS.items():
    globals()[_name.replace('-', '_')] = register_model(model_function(CvTClassifier, _name, _arch))
