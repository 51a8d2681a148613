"""Whether a run starts from random weights that it keeps: BatchNorms without statistics, and frozen stages."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from mmengine.runner import Runner

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
    if kept is None:
        return []
    cure = as_options({f'{path}.backbone.{key}': value for key, value in kept.cure.items()})
    line = f'{path}.backbone starts from random weights, and {kept.what}'
    return [f'{line}: --cfg-options {cure}, or weights to start from']


class AlreadyTold(Hook):
    """Lets the backbones in a model not say at their first step what the lines above have said."""

    def before_train(self, runner: Runner) -> None:
        """Now all runners have built their model: FlexibleRunner does it late."""
        for module in runner.model.modules():
            if hasattr(module, 'tells_of_random_start'):
                module.tells_of_random_start = False
