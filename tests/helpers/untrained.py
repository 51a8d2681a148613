"""Checkpoints as training writes them, of models that were not trained."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config

from cvt_dense.engine.model import build_model


def save_untrained(config: Path, path: Path) -> Path:
    """Write a checkpoint of a config's model with random weights, which knows the classes of the config's data."""
    torch.manual_seed(1)
    cfg = Config.fromfile(config)
    cfg.model.backbone.init_cfg = None
    model = build_model(cfg)
    meta = dict(dataset_meta=cfg.test_dataloader.dataset.metainfo.to_dict())
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path
