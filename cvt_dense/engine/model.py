"""Build the model that a config describes, outside of a run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import import_modules_from_strings
from torch import nn

from ..checkpoints.sources import fetch
from .config import scope_of
from .failures import cannot_be_built
from .run_checkpoints import check_checkpoint, load_weights


@contextmanager
def toolkit_scope(cfg: Config) -> Iterator[None]:
    """Look names up in a config's toolkit first, which is imported: the one that it names, or that its model is of."""
    scope = cfg.get('default_scope') or scope_of(cfg.model)
    if scope:
        import_modules_from_strings([f'{scope}.models'])
    with DefaultScope.overwrite_default_scope(scope):
        yield


def build_model(cfg: Config, weights: str | None = None) -> nn.Module:
    """Build a config's model in its scope, with BatchNorm for SyncBatchNorm, which needs a group of processes.

    Args:
        cfg: Config of mmdet or mmseg.
        weights: A checkpoint that training wrote and that covers the model, or its address. What it says of the data
            is then the model's ``dataset_meta``, as the toolkits have it. None leaves the model as it is built.

    Raises:
        UserError: If the config cannot be built, or the checkpoint does not cover its model.
        CheckpointError: If the checkpoint cannot be read.
    """
    if weights is not None:
        check_checkpoint(weights)
        weights = str(fetch(weights))
        if 'backbone' in cfg.model:
            cfg.model.backbone.init_cfg = None  # the checkpoint holds every weight
    try:
        with toolkit_scope(cfg):
            model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))  # some models change theirs
    except Exception as error:  # constructors of all kinds of models
        raise cannot_be_built('the config', error) from error
    if weights is not None:
        content = load_weights(model, weights)
        model.dataset_meta = (content.get('meta') or {}).get('dataset_meta') or {}
    return model
