"""A backbone as timm loads it from a folder or the Hub: ``config.json`` and ``model.safetensors``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ..checkpoints.conversion import TIMM_SETTINGS, TOLERANCE, difference, kept_for, last_map, random_image, write
from ..checkpoints.families import FAMILIES, Family
from ..checkpoints.formats import unwrap
from ..errors import UserError
from ..models.trunk import Trunk
from ..registry import type_name

#: Settings of a backbone that change what it computes, and that timm's models have too.
_SETTINGS = ('in_channels', 'window_size', 'reference_resolution', 'pretrain_size', 'bias_interpolation')


def why_not(backbone: nn.Module | None, preprocessor: Mapping[str, Any]) -> str | None:
    """Why timm has no model for a backbone; None if it has one.

    Args:
        backbone: Of the model; None if it has none.
        preprocessor: The model's ``data_preprocessor`` in the config.
    """
    if not isinstance(backbone, Trunk) or backbone.family not in FAMILIES:
        return 'it has no backbone' if backbone is None else f'its backbone is a {type(backbone).__name__}'
    if len(backbone.stages) != backbone.arch.num_stages:
        return f'its backbone has {len(backbone.stages)} of {backbone.arch.num_stages} stages'
    if backbone.in_channels == 3 and not preprocessor.get('bgr_to_rgb'):
        return "its images are BGR, and those of timm's models RGB"
    return None


def timm_config(
    backbone: Trunk,
    settings: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
    size: Sequence[int] | None,
) -> dict[str, Any]:
    """What timm's ``config.json`` says of a backbone.

    Args:
        backbone: Built.
        settings: Its part of the config.
        preprocessor: The model's ``data_preprocessor`` in the config.
        size: Height and width of the images that it was trained or tested on, if known.
    """
    family = FAMILIES[backbone.family]
    variant = family.name_of(backbone.arch)
    arguments = {TIMM_SETTINGS.get(name, name): settings[name] for name in _SETTINGS if settings.get(name) is not None}
    if arguments.get('in_chans') == 3:
        del arguments['in_chans']
    if variant is None:  # the architecture as a dict, for which any variant's function will do
        variant, arguments['arch'] = next(iter(family.variants)), dataclasses.asdict(backbone.arch)
    return dict(
        architecture=variant.replace('-', '_'),
        num_classes=0,
        num_features=backbone.arch.embed_dims[-1],
        model_args=arguments,
        pretrained_cfg=dict(
            num_classes=0,
            **({} if size is None else dict(input_size=[backbone.in_channels, *size])),
            fixed_input_size=False,
            pool_size=None,
            crop_pct=1.0,
            interpolation='bilinear',
            **_normalisation(preprocessor),
            first_conv=_first_conv(family, backbone),
            classifier='head',
        ),
    )


def _first_conv(family: Family, backbone: nn.Module) -> str:
    (name,) = family.formats['timm'].from_trunk({family.stem(backbone.state_dict()): torch.empty(0)})
    return name.removesuffix('.weight')


def _normalisation(preprocessor: Mapping[str, Any]) -> dict[str, list[float]]:
    """Mean and standard deviation of RGB from 0 to 1, of a preprocessor for pixels from 0 to 255."""
    found = {}
    for name in ('mean', 'std'):
        if preprocessor.get(name) is not None:
            found[name] = [round(value / 255, 6) for value in preprocessor[name]]
    return found


def write_timm_folder(config: Mapping[str, Any], backbone: Trunk, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write a backbone for timm, and see that timm computes the same with it.

    Args:
        config: Of :func:`timm_config`.
        backbone: With its weights.
        weights: Those of the whole model that it is in.
        folder: It may hold other files.

    Raises:
        UserError: If timm computes something else.
    """
    family = FAMILIES[backbone.family]
    tensors = kept_for('timm', family, unwrap({'state_dict': dict(weights)}))
    write(family.formats['timm'].from_trunk(tensors), folder / 'model.safetensors')
    (folder / 'config.json').write_text(f'{json.dumps(config, indent=2)}\n')
    image = random_image(backbone.in_channels)
    model = timm.create_model(f'local-dir:{folder}', pretrained=True, features_only=True, out_indices=(-1,)).eval()
    with torch.no_grad():
        off = difference(model(image)[0], last_map(backbone.eval(), image))
    if not off <= TOLERANCE:
        raise UserError(f'timm computes something else with this backbone (off by {off:.1e}), so nothing was written')


def image_size(preprocessor: Mapping[str, Any], pipeline: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Height and width of the images of a run: of its crops, else of those that its test pipeline resizes to.

    Args:
        preprocessor: The model's ``data_preprocessor`` in the config.
        pipeline: Of its test data.
    """
    if preprocessor.get('size'):
        return tuple(preprocessor['size'])
    scales = [step.get('scale') for step in pipeline if type_name(step) == 'Resize']
    scales = [scale for scale in scales if isinstance(scale, (list, tuple))]
    return (min(scales[-1]), max(scales[-1])) if scales else None  # toolkits' scales are of wide images
