"""Runs of the tools on the fewest and smallest images."""

from __future__ import annotations

import os
import subprocess

from paths import ROOT
from tool_processes import run_tool

MASK_RCNN, UPERNET = 'configs/maskrcnn_cvt13_fpn_coco.py', 'configs/upernet_cvt13_ade20k.py'
# What makes a step short on a CPU: few small images and few proposals.
SMALL_DETECTION = [
    'train_dataloader.dataset.pipeline.2.scale=(128,128)',
    'val_dataloader.dataset.pipeline.1.scale=(128,128)',
    'test_dataloader.dataset.pipeline.1.scale=(128,128)',
    'train_dataloader.dataset.indices=4',
    'val_dataloader.dataset.indices=2',
    'test_dataloader.dataset.indices=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'model.train_cfg.rpn_proposal.max_per_img=20',
    'model.train_cfg.rcnn.sampler.num=16',
    'model.test_cfg.rpn.max_per_img=20',
    'model.test_cfg.rcnn.score_thr=0.0',
    'model.test_cfg.rcnn.max_per_img=5',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]
SMALL_SEGMENTATION = [
    'train_dataloader.dataset.pipeline.2.scale=(128,64)',
    'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
    'model.data_preprocessor.size=(64,64)',
    'val_dataloader.dataset.pipeline.1.scale=(128,64)',
    'test_dataloader.dataset.pipeline.1.scale=(128,64)',
    'val_dataloader.dataset.indices=2',
    'test_dataloader.dataset.indices=2',
    'train_dataloader.num_workers=0',
    'train_dataloader.persistent_workers=False',
    'val_dataloader.num_workers=0',
    'val_dataloader.persistent_workers=False',
    'test_dataloader.num_workers=0',
    'test_dataloader.persistent_workers=False',
    'default_hooks.checkpoint.interval=1',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]


def run(tool: str, *arguments: object, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run a tool from the root of the checkout; its output as text."""
    return run_tool([ROOT / 'tools' / tool, *arguments], env=os.environ | (env or {}))
