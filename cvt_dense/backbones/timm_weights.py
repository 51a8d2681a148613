"""How the timm models take weights: by any of timm's calls, of any known format, and never with a head left random."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..checkpoints.families import FAMILIES
from ..checkpoints.formats import to_trunk
from ..checkpoints.load import check_fit
from ..errors import CheckpointError

_logger = logging.getLogger(__name__)


def fitting(
    state_dict: Mapping[str, Any],
    model: nn.Module,
    name: str,
    new_head: bool = False,
    top_is_used: bool = True,
    adapts_stem: bool = False,
) -> dict[str, torch.Tensor]:
    """Bring a checkpoint of any known format to the names of a timm model, all of them and no others.

    A backbone out of a detector has no head and no final norm. A model without a classifier takes it, with a plain norm
    (weight 1, bias 0) and a warning.

    Args:
        state_dict: What a file holds.
        model: The one that is going to load it.
        name: Of the model, for messages.
        new_head: The model is to have a fresh head, for classes of its own.
        top_is_used: The final norm and the head stay in the model; those of feature maps are removed after loading.
        adapts_stem: The weights of the first convolution may be for another number of channels.

    Raises:
        CheckpointError: If it holds no weights of the model's family, or does not cover the model.
    """
    family = FAMILIES[model.family]
    converted = to_trunk(state_dict, formats=family.formats)
    if converted is None:
        raise CheckpointError(f'checkpoint for {name} holds no {family.name} weights of any known format')
    tensors, found = converted
    own = family.formats['timm'].to_trunk(model.state_dict())
    tensors, adapted = family.adapted(tensors, own, model)
    stages = {key: tensor for key, tensor in own.items() if family.stage_of(key) is not None}
    stem = family.stem(own)
    if adapts_stem and stem in tensors:
        stages[stem] = tensors[stem]
    check_fit(name, tensors, stages, family, model.arch, len(model.stages))
    top = {key: tensor for key, tensor in own.items() if key not in stages}
    if top_is_used:
        _check_top(name, tensors, top, new_head)
    _logger.info('%s: loaded %d tensors of the trunk (%s format) %s', name, len(stages), found, adapted)
    return family.formats['timm'].from_trunk({key: tensors.get(key, tensor) for key, tensor in (stages | top).items()})


def _check_top(name: str, tensors: Mapping[str, torch.Tensor], top: Mapping[str, torch.Tensor], new_head: bool) -> None:
    """Say what a checkpoint has not got for the final norm and the head of a model, if it has them."""
    wanted, there = top.get('head.weight'), tensors.get('head.weight')
    if wanted is not None and not new_head and not {'head.weight', 'head.bias'} <= tensors.keys():
        raise CheckpointError(
            f'checkpoint for {name} holds no classifier, as a backbone out of a detector: load it with '
            'features_only=True for feature maps, or with num_classes=0'
        )
    if wanted is not None and there is not None:
        ours, theirs = len(wanted), len(there)
        if not new_head and ours != theirs:
            raise CheckpointError(
                f'checkpoint for {name} has a head for {theirs} classes, and the model one for {ours}: set '
                f'num_classes={theirs}'
            )
        if new_head and ours == theirs:
            _logger.warning(
                '%s: the head of the checkpoint is not taken, since the published one has other classes: add '
                'num_classes=%d to pretrained_cfg_overlay',
                name,
                theirs,
            )
    lost = [key for key in top if not key.startswith(('head.', 'norm.', 'downsample.')) and key not in tensors]
    if any(not key.endswith('num_batches_tracked') for key in lost):
        raise CheckpointError(
            f'checkpoint for {name} holds no {lost[0]}, as a backbone out of a detector: load it with '
            'features_only=True for feature maps'
        )
    if 'norm.weight' in top and 'norm.weight' not in tensors:
        _logger.warning(
            '%s: the checkpoint has no final norm, as a backbone out of a detector: features get a plain one (weight '
            '1, bias 0)',
            name,
        )


class LoadsAnyFormat(nn.Module):
    """A model whose ``load_state_dict``, if it is strict, takes checkpoints of any known format."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; a strict one brings other names than the model's to the model's.

        Raises:
            CheckpointError: As :func:`fitting` does.
        """
        if strict and _shapes(state_dict) != _shapes(self.state_dict()):
            state_dict = fitting(state_dict, self, name_of(self))
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _shapes(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, 'shape', None) for name, value in state_dict.items()}


def name_of(model: nn.Module) -> str:
    """The name that timm has for a model, with that of its published weights; that of its class if timm has none."""
    cfg = getattr(model, 'pretrained_cfg', None)
    # The config of a folder, or of a repository on the Hub, has no tag.
    return f'{cfg["architecture"]}.{cfg.get("tag") or ""}'.rstrip('.') if cfg else type(model).__name__
