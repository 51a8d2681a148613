"""Whether a run starts from random weights that it keeps: BatchNorms without statistics, and frozen stages."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from ..registry import as_options, pretrained_sources, setting_at


def lines_of_random_start(cfg: Config, path: str) -> list[str]:
    """A line for a backbone that is not loaded, and keeps some of what it is made with for ever.

    Args:
        cfg: Config of a run that starts from what it says, and from no checkpoint besides; left as it is.
        path: Of the model in it that has the backbone.
    """
    settings = setting_at(cfg, path)['backbone']
    if any(pretrained_sources(part) for part in (settings, setting_at(cfg, path), cfg.model)):
        return []
    with torch.device('meta'):
        kept = MODELS.build(settings.copy()).kept_from_random_start()
    if not kept:
        return []
    cure = as_options({f'{path}.backbone.{key}': value for part in kept for key, value in part.cure.items()})
    what = ', and '.join(part.what for part in kept)
    return [f'{path}.backbone starts from random weights, and {what}: --cfg-options {cure}, or weights to start from']


def keep_from_telling(model: nn.Module) -> None:
    """Let the backbones in a model not say at their first step what the lines above have said."""
    for module in model.modules():
        if hasattr(module, 'tells_of_random_start'):
            module.tells_of_random_start = False
