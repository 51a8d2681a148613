"""sahi predicts in slices by a detector of mmdetection, and by one of torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from documents import run_block
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from paths import ROOT
from PIL import Image
from sahi import AutoDetectionModel
from sahi.predict import get_sliced_prediction

CONFIG = 'configs/maskrcnn_cvttiny_fpn_shapes.py'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a picture, the configs and a checkpoint of one."""
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    Image.fromarray(np.full((160, 200, 3), 90, np.uint8)).save(tmp_path / 'image.png')
    monkeypatch.chdir(tmp_path)
    register_all_modules()
    cfg = Config.fromfile(CONFIG)
    cfg.model.backbone.init_cfg = None
    state = MODELS.build(cfg.model).state_dict()
    classes = tuple(f'class {index}' for index in range(cfg.model.roi_head.bbox_head.num_classes))
    torch.save(dict(state_dict=state, meta=dict(dataset_meta=dict(CLASSES=classes))), 'epoch_12.pth')
    return tmp_path


def test_the_block_of_the_page_runs(folder: Path) -> None:
    names = run_block('integrations', 'sahi', {})
    assert names['model'].category_mapping['0'] == 'class 0'
    assert isinstance(names['result'].object_prediction_list, list)


def test_a_detector_of_torchvision(folder: Path) -> None:
    detector = run_block('integrations', 'torchvision', {'cvt_13': 'small_cvt'})['model']
    names = {str(index): f'class {index}' for index in range(4)}
    model = AutoDetectionModel.from_pretrained(
        'torchvision', model=detector, device='cpu', category_mapping=names, confidence_threshold=0.0
    )
    assert get_sliced_prediction('image.png', model, slice_height=96, slice_width=96).object_prediction_list
