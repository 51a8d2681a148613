"""Whether BatchNorms that keep their statistics have any to keep: those of a fresh network are none."""

from __future__ import annotations

from mmengine.config import Config

from ..registry import as_options, pretrained_sources, setting_at


def lines_of_statistics(cfg: Config, path: str) -> list[str]:
    """A line for a backbone that is neither loaded nor lets its BatchNorms learn the statistics of its maps.

    Args:
        cfg: Config of a run that starts from what it says, and from no checkpoint besides; left as it is.
        path: Of the model in it that has the backbone.
    """
    backbone = setting_at(cfg, path)['backbone']
    is_loaded = any(pretrained_sources(settings) for settings in (backbone, setting_at(cfg, path), cfg.model))
    if is_loaded or not backbone.get('norm_eval', True):
        return []
    cure = as_options({f'{path}.backbone.norm_eval': False})
    return [
        f'{path}.backbone starts from random weights, and its BatchNorms keep mean 0 and variance 1 for ever '
        f'(norm_eval=True), which normalises nothing: --cfg-options {cure}, or weights to start from'
    ]
