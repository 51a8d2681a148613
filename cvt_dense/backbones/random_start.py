"""What a backbone that starts from random weights keeps for ever, although it trains."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import nn

from ..models.norms import keeps_statistics


class Kept(NamedTuple):
    """What stays as it was made.

    Attributes:
        what: All of it and why, in words.
        cure: Settings of the backbone that let it learn.
    """

    what: str
    cure: dict[str, Any]


def kept_parts(backbone: nn.Module) -> Kept | None:
    """What a backbone's settings keep as it was made, which is wrong unless weights are loaded; None if nothing.

    Args:
        backbone: With its ``norm_eval`` and ``frozen_stages``; on any device, the meta device too.
    """
    whats, cure = [], {}
    if backbone.norm_eval and any(keeps_statistics(module) for module in backbone.modules()):
        whats.append('its BatchNorms keep mean 0 and variance 1 for ever (norm_eval=True), which normalises nothing')
        cure['norm_eval'] = False
    if backbone.frozen_stages >= 0:
        count = backbone.frozen_stages + 1
        stages = 'its first stage keeps its' if count == 1 else f'its first {count} stages keep their'
        whats.append(f'{stages} random weights (frozen_stages={count - 1})')
        cure['frozen_stages'] = -1
    return Kept(', and '.join(whats), cure) if whats else None


def tell_of_kept_parts(backbone: nn.Module) -> None:
    """Say in the log, once, if a backbone trains with BatchNorms that keep the mean 0 and the variance 1 of fresh ones.

    These tell that no weights were loaded, by ``init_cfg`` or in any other way.

    Args:
        backbone: In training mode.
    """
    kept = kept_parts(backbone)
    kept_norms = [module for module in backbone.modules() if keeps_statistics(module) and not module.training]
    if kept is not None and kept_norms and all(_is_fresh(norm) for norm in kept_norms):
        cure = ', '.join(f'{key}={value}' for key, value in kept.cure.items())
        line = f'{backbone.family} trains from random weights, and {kept.what}'
        _say(f'{line}: backbone=dict({cure}), or weights to start from')


def _is_fresh(norm: nn.Module) -> bool:
    mean, variance = norm.running_mean, norm.running_var
    if type(mean) is not torch.Tensor or mean.is_meta:  # there are no values to look at
        return False
    return not mean.any() and bool((variance == 1).all())


@cache
def _say(line: str) -> None:
    """Once in a process: copies of a model, as DataParallel makes them for each step, would say it again."""
    print_log(line, logger='current', level=logging.WARNING)
