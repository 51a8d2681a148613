"""What our models in timm share, whatever their family: checks, feature maps, and how timm makes and registers them."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models import build_model_with_cfg, register_notrace_function, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import nn

from ..checkpoints import read_checkpoint
from ..checkpoints.published import PUBLISHED
from ..checkpoints.sources import LOCAL_FOLDER, find_local
from ..errors import CheckpointError, reason
from ..models.arch import StagedArch
from ..models.embed import ConvEmbed
from ..models.images import check_images
from ..models.settings import integer, is_number, shown
from ..models.stages import run_stages
from ..models.tokens import tokens_to_map
from .timm_features import FeatureMaps, check_output_stride
from .timm_weights import LoadsAnyFormat, fitting, name_of

register_notrace_function(check_images)
torch.fx.wrap('check_images')


class StagedModel(LoadsAnyFormat):
    """A timm model with stages in ``self.stages``, and a classifier ``self.head``.

    Attributes:
        family: Its name.
        min_size: Side of the smallest image, in pixels.
    """

    family: str

    def set_up(
        self,
        arch: StagedArch,
        min_size: int,
        in_chans: int,
        num_classes: int,
        drop_rate: float,
        dtype: torch.dtype | None,
    ) -> None:
        """Check the settings that all families have, and keep them.

        Raises:
            ValueError: If one is wrong; the message says which.
        """
        self.arch = arch
        self.min_size = min_size
        self.in_chans = integer(in_chans, 'in_chans')
        self.num_classes = integer(num_classes, 'num_classes', least=0)
        if not is_number(drop_rate) or not 0 <= drop_rate <= 1:
            raise ValueError(f'drop_rate must lie in [0, 1], got {shown(drop_rate)}')
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise ValueError(f'dtype must be one of floating-point numbers, such as torch.float32, got {shown(dtype)}')
        self.feature_info = [
            dict(num_chs=channels, reduction=stride, module=f'stages.{index}')
            for index, (channels, stride) in enumerate(zip(arch.embed_dims, arch.strides))
        ]

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass (activation checkpointing)."""
        for stage in self.stages:
            stage.with_cp = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def new_head(self, num_classes: int, num_features: int) -> nn.Module:
        """A fresh classifier, where the model is and as it is; the identity for no classes."""
        like = next(self.stages.parameters())
        if num_classes == 0:
            return nn.Identity().train(self.training)
        return nn.Linear(num_features, num_classes, device=like.device, dtype=like.dtype).train(self.training)

    def add_map(self, stride: int) -> None:
        """Add a map behind the last stage: a convolution with LayerNorm, as the trunk's embeddings are, and fresh.

        Args:
            stride: Of the convolution.
        """
        like, last = next(self.stages.parameters()), self.feature_info[-1]
        embed = ConvEmbed(last['num_chs'], last['num_chs'], kernel_size=3, stride=stride, padding=1)
        self.downsample = embed.to(like).train(self.training)
        self.feature_info.append(last | dict(reduction=last['reduction'] * stride, module='downsample'))

    def num_maps(self) -> int:
        """How many maps the model has."""
        return len(self.stages) + hasattr(self, 'downsample')

    def features_of(self, tokens: torch.Tensor, maps: list[torch.Tensor], norm: bool, is_last: bool) -> torch.Tensor:
        """What :meth:`forward_features` returns, of what the last stage computed.

        Args:
            tokens: Of the last stage computed.
            maps: Of all of them; the last one may be replaced.
            norm: Whether it is to be normalised, if the model has a norm for it.
            is_last: Whether that was the model's last stage.
        """
        raise NotImplementedError

    def prune_top(self, prune_norm: bool, prune_head: bool, prune_end: bool) -> None:
        """Remove what the model has behind its stages; the last of them may be gone."""
        raise NotImplementedError

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
            x: ``(N, in_chans, H, W)``, of any size from the family's smallest on, odd ones too.
            indices: Maps to return, that of stage 0 first; an int for the last so many, None for all.
            norm: Put the final norm on the last stage's map, if there is one.
            stop_early: Leave out the stages after the last one returned.
            output_fmt: Only ``'NCHW'``.
            intermediates_only: Return the maps alone.

        Returns:
            The maps, contiguous ``(N, C_i, H_i, W_i)``; before them, unless they are asked for alone, what
            :meth:`forward_features` returns (the last features computed, if stopped early).
        """
        assert output_fmt == 'NCHW', 'output_fmt must be NCHW'
        take_indices, max_index = feature_take_indices(self.num_maps(), indices)
        check_images(x, self.in_chans, self.min_size, self.family)
        outputs = run_stages(self.stages[: max_index + 1] if stop_early else self.stages, [x])
        maps = [parts[0] for _, parts in outputs]
        beyond = [tokens_to_map(*self.downsample(maps[-1]))] if max_index == len(self.stages) else []
        features = self.features_of(outputs[-1][0], maps, norm, len(outputs) == len(self.stages))
        intermediates = [output.contiguous() for index, output in enumerate(maps + beyond) if index in take_indices]
        return intermediates if intermediates_only else (features, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the feature maps of some stages do not need; returns the stages kept for output."""
        take_indices, max_index = feature_take_indices(self.num_maps(), indices)
        prune_end = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if prune_end:
            self.num_features = self.feature_info[max_index]['num_chs']
        self.prune_top(prune_norm, prune_head, prune_end)
        return take_indices


def checkpoint_filter_fn(
    state_dict: dict[str, Any], model: StagedModel, top_is_used: bool = True
) -> dict[str, torch.Tensor]:
    """Bring a checkpoint of any known format to the names of a timm model, for timm's own loading.

    Raises:
        CheckpointError: If it holds no weights of the model's family, or does not cover the model.
    """
    return fitting(
        state_dict,
        model,
        name_of(model),
        new_head=model.num_classes != model.pretrained_cfg['num_classes'],
        top_is_used=top_is_used,
        adapts_stem=model.in_chans != model.pretrained_cfg['input_size'][0],  # by timm, afterwards
    )


def create_model(kind: type[StagedModel], variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Make a model as timm's factory does.

    Args:
        kind: Its class.
        variant: Its name in timm.
        pretrained: Whether it gets its published weights.
        **kwargs: As timm's model functions take them.

    Raises:
        CheckpointError: If the weights are not found or do not fit.
        ValueError: If a setting is wrong; the message says which.
    """
    output_stride, features_only = kwargs.pop('output_stride', None), kwargs.get('features_only')
    feature_cfg = dict(out_indices=None, feature_cls=FeatureMaps)
    if features_only and output_stride is not None:
        feature_cfg['output_stride'] = output_stride
    arch = variant.replace('_', '-')
    overlay = dict(kwargs.pop('pretrained_cfg_overlay', None) or {})
    if pretrained and not overlay.keys() & {'file', 'url', 'hf_hub_id', 'state_dict'}:
        tag = resolve_pretrained_cfg(variant, kwargs.get('pretrained_cfg')).tag
        published = next((p for p in PUBLISHED.values() if (p.arch, p.timm_tag) == (arch, tag)), None)
        local = find_local(published) if published else None
        if published and published.url:  # whose wrapping timm would not read
            overlay['state_dict'] = dict(read_checkpoint(published.name))
        elif local:
            overlay['file'] = str(local)
    try:
        model = build_model_with_cfg(
            kind,
            variant,
            pretrained,
            pretrained_filter_fn=partial(checkpoint_filter_fn, top_is_used=not features_only),
            pretrained_cfg_overlay=overlay,
            feature_cfg=feature_cfg,
            **(dict(arch=arch) | kwargs),
        )
    except OSError as error:  # the Hub's errors, and those of a file that is not there
        raise CheckpointError(
            f"weights of {variant} are not available ({reason(error)}). Without network, put the authors' files into a "
            f'folder and set {LOCAL_FOLDER}, or give one with pretrained_cfg_overlay=dict(file=PATH)'
        ) from error
    if not features_only:
        check_output_stride(output_stride, model.feature_info[-1]['reduction'], model.family)
    return model


def model_function(kind: type[StagedModel], name: str, arch: StagedArch) -> Callable[..., nn.Module]:
    """The function by which timm makes a variant, ``cvt_13`` for ``'cvt-13'``: for its registry, and for a module.

    Args:
        kind: Class of the model; the function belongs into its module.
        name: Of the variant.
        arch: Its architecture.
    """
    variant = name.replace('-', '_')

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return create_model(kind, variant, pretrained, **kwargs)

    depths, widths = ('/'.join(map(str, values)) for values in (arch.depths, arch.embed_dims))
    title = name.upper().replace(kind.family.upper(), kind.family)
    create.__module__ = kind.__module__
    create.__name__ = create.__qualname__ = variant
    create.__doc__ = f'{title}: {depths} blocks of {widths} channels.'
    return create
