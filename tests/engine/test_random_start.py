"""What a run from random weights would keep for ever, as a line with what cures it."""

from __future__ import annotations

from typing import Any

import pytest
from advice import with_options
from doctor import check_silent_faults
from doctor_machine import NOTE
from mmengine.config import Config
from paths import ROOT

from cvt_dense.engine.config import load_config
from cvt_dense.engine.faults import random_start_faults

MASK_RCNN = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
BATCHNORMS = 'its BatchNorms keep mean 0 and variance 1 for ever (norm_eval=True), which normalises nothing'
LINEAR = dict(embed_dims=[16, 32], num_heads=[1, 2], depths=[1, 1], projection='linear')
STEM = dict(LINEAR, stem_channels=8)


def config_with(**backbone: Any) -> Config:
    cfg = load_config(MASK_RCNN)
    cfg.model.backbone = backbone
    return cfg


@pytest.mark.parametrize(
    ('backbone', 'kept', 'cure'),
    [
        (dict(type='CvT', arch='cvt-13'), BATCHNORMS, 'model.backbone.norm_eval=False'),
        (dict(type='CMT', arch='cmt-ti'), BATCHNORMS, 'model.backbone.norm_eval=False'),
        (
            dict(type='CvT', arch=STEM, out_indices=[1]),
            BATCHNORMS,
            'model.backbone.norm_eval=False',
        ),
        (
            dict(type='CvT', norm_eval=False, frozen_stages=0),
            'its first stage keeps its random weights (frozen_stages=0)',
            'model.backbone.frozen_stages=-1',
        ),
        (
            dict(type='CMT', frozen_stages=1),
            f'{BATCHNORMS}, and its first 2 stages keep their random weights (frozen_stages=1)',
            'model.backbone.norm_eval=False model.backbone.frozen_stages=-1',
        ),
    ],
    ids=['cvt', 'cmt', 'stem', 'frozen', 'both'],
)
def test_each_is_named_and_the_options_cure_it(backbone: dict[str, Any], kept: str, cure: str) -> None:
    cfg = config_with(**backbone)
    (line,) = random_start_faults(cfg)
    assert line == (
        f'model.backbone starts from random weights, and {kept}: --cfg-options {cure}, or weights to start from'
    )
    assert line in [result.text for result in check_silent_faults(cfg) if result.status == NOTE]
    assert random_start_faults(with_options(cfg, line)) == []


@pytest.mark.parametrize(
    'backbone',
    [dict(norm_eval=False), dict(arch=LINEAR, out_indices=[0, 1])],
    ids=['batch statistics', 'no BatchNorm'],
)
def test_what_learns_all_of_it_gets_no_word(backbone: dict[str, Any]) -> None:
    assert random_start_faults(config_with(type='CvT', **backbone)) == []


def test_weights_to_start_from_are_a_cure() -> None:
    cfg = config_with(type='CvT', frozen_stages=1)
    for place in (cfg.model.backbone, cfg.model):
        place.init_cfg = dict(type='Pretrained', checkpoint='a.pth')
        assert random_start_faults(cfg) == []
        place.init_cfg = None
    assert 'random weights' in ' '.join(result.text for result in check_silent_faults(cfg))
    cfg.load_from = 'a.pth'
    assert 'random weights' not in ' '.join(result.text for result in check_silent_faults(cfg))
