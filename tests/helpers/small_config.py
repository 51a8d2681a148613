"""A config that is read and not run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from cvt_dense.engine.config import load_config

CONFIG = """
default_scope = 'mmdet'
model = dict(type='X', backbone=dict(type='CvT', arch='cvt-13', init_cfg=dict(type='Pretrained', checkpoint='x')))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1))
param_scheduler = [dict(type='LinearLR', end=5), dict(type='MultiStepLR', milestones=[8, 11])]
"""


def load(folder: Path, text: str = CONFIG, name: str = 'config.py', **settings: Any) -> Config:
    """Write a config and read it."""
    (folder / name).write_text(text)
    return load_config(str(folder / name), **settings)


def message(error: pytest.ExceptionInfo) -> str:
    """The message, which must be one line."""
    assert '\n' not in str(error.value)
    return str(error.value)
