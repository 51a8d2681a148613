"""Anchors and limits that do not fit the objects of the data are a line, and what it says to set cures it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from advice import with_options
from doctor import parsed
from paths import ROOT

from cvt_dense.datasets.check import build_dataset
from cvt_dense.engine.config import load_config
from cvt_dense.engine.objects import Objects, lines_of_objects, objects_of

DETECTION = ROOT / 'configs/maskrcnn_cvt13_fpn_coco.py'
RETINANET = ROOT / 'configs/retinanet_cvt13_fpn_coco.py'
NUCLEI = ROOT / 'configs/maskrcnn_cvttiny_fpn_nuclei.py'


def objects(side: float, most: int = 1) -> Objects:
    return Objects(np.full(10, side), most)


@pytest.mark.parametrize(('side', 'scales'), [(11, [3]), (6, [1.5]), (3, [1]), (15, [4])])
def test_anchors_that_are_too_large(side: float, scales: list[float]) -> None:
    cfg = load_config(DETECTION)
    (line,) = lines_of_objects(cfg, objects(side))
    assert f'sides below {side} pixels as the network sees them, and the smallest anchors 32' in line
    cfg = with_options(cfg, line)
    assert lines_of_objects(cfg, objects(side)) == []


def test_anchors_of_retinanet() -> None:
    cfg = load_config(RETINANET)
    (line,) = lines_of_objects(cfg, objects(5))
    assert 'model.bbox_head.anchor_generator.octave_base_scale=' in line
    assert lines_of_objects(with_options(cfg, line), objects(5)) == []


def test_objects_that_fit_get_no_word() -> None:
    assert lines_of_objects(load_config(DETECTION), objects(30, 100)) == []
    assert lines_of_objects(load_config(ROOT / 'configs/upernet_cvt13_ade20k.py'), objects(1, 1000)) == []


def test_more_objects_than_may_be_found() -> None:
    for path, at in (
        (DETECTION, 'model.test_cfg.rcnn.max_per_img'),
        ('retinanet_cvt13_fpn_coco', 'model.test_cfg.max'),
    ):
        cfg = load_config(ROOT / f'configs/{path}.py' if isinstance(path, str) else path)
        (line,) = lines_of_objects(cfg, objects(100, 130))
        assert line.startswith('an image has 130 objects, and ')
        assert f'--cfg-options {at}' in line
        assert lines_of_objects(with_options(cfg, line), objects(100, 130)) == []


def test_nuclei_are_measured_as_the_network_sees_them(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NUCLEI_ROOT', str(data / 'nuclei'))
    cfg = load_config(NUCLEI)
    dataset = build_dataset(cfg.train_dataloader.dataset, 'mmdet')
    dataset.full_init()
    np.random.seed(0)
    torch.manual_seed(0)
    found = objects_of(dataset)
    after: tuple[Any, ...] = np.random.rand(), torch.rand(1)
    np.random.seed(0)
    torch.manual_seed(0)
    assert after == (np.random.rand(), torch.rand(1))  # a run draws what it would have drawn
    assert 6 < found.quarter < 12
    assert found.most == 101
    assert lines_of_objects(cfg, found) == []
    twice = copy.deepcopy(cfg.train_dataloader.dataset)
    twice.pipeline[2].scale = (512, 512)
    dataset = build_dataset(twice, 'mmdet')
    dataset.full_init()
    assert objects_of(dataset).quarter == pytest.approx(2 * found.quarter, rel=0.02)
    coarse = load_config(
        ROOT / 'configs/maskrcnn_cvttiny_fpn_nuclei.py', parsed(('model.rpn_head.anchor_generator.scales=[8]',))
    )
    assert 'smallest anchors 32' in lines_of_objects(coarse, found)[0]


def test_data_without_boxes_are_not_measured() -> None:
    class Labels:
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> dict[str, Any]:
            return dict(inputs=torch.zeros(3, 4, 4), data_samples=None)

    assert objects_of(Labels()) is None
