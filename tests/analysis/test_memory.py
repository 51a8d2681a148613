from __future__ import annotations

import pytest
import torch
from costs import Costs
from mmengine.config import Config
from paths import ROOT

from cvt_dense import CvT
from cvt_dense.analysis.memory import estimate_memory, image_size

CONFIGS = ROOT / 'configs'


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / f'{name}.py')


@pytest.mark.parametrize(
    ('name', 'size'),
    [
        ('maskrcnn_cvt13_fpn_coco', (800, 1344)),  # padded from 1333
        ('maskrcnn_cvt13_fpn_coco_3x', (800, 1344)),  # the largest of several scales
        ('dino_cvt13_coco', (800, 1333)),  # the larger of two branches, unpadded
        ('upernet_cvt13_ade20k', (512, 512)),
        ('upernet_cvt13_cityscapes', (512, 1024)),
        ('maskrcnn_cvttiny_fpn_shapes', (160, 160)),  # named in validation only
    ],
)
def test_sizes_of_images_are_read_from_configs(name: str, size: tuple[int, int]) -> None:
    cfg = load(name)
    if 'cityscapes' in name:
        cfg.model.data_preprocessor.size = None
    assert image_size(cfg) == size


@pytest.mark.parametrize('name', ['maskrcnn_cvttiny_fpn_shapes', 'upernet_cvttiny_shapes'])
def test_the_parts_are_of_the_sizes_that_they_have(name: str) -> None:
    estimate = estimate_memory(load(name))
    assert estimate.left_out == ()
    assert estimate.gradients <= estimate.parameters < 1.01 * estimate.gradients
    assert estimate.optimizer == 2 * estimate.gradients
    assert estimate.gradients < estimate.passes < estimate.total < 2**29


def test_activations_are_those_of_a_real_step() -> None:
    """Of the backbone alone, whose tensors can be counted as it trains."""
    cfg = load('upernet_cvttiny_shapes')
    cfg.model.decode_head = cfg.model.auxiliary_head = None
    cfg.model.backbone.drop_path_rate = 0.0
    backbone = CvT(
        arch={k: v for k, v in cfg.model.backbone.arch.items() if k != '_delete_'}, drop_path_rate=0.0, norm_eval=False
    )
    with Costs() as costs:
        sum(x.sum() for x in backbone.train()(torch.zeros(16, 3, 160, 160))).backward()
    cfg.model.decode_head = load('upernet_cvttiny_shapes').model.decode_head
    cfg.model.decode_head.channels = 1
    cfg.model.decode_head.norm_cfg = None
    assert costs.peak_bytes < estimate_memory(cfg).passes < 2 * costs.peak_bytes


def test_they_grow_with_the_batch_and_shrink_with_recomputing_and_precision() -> None:
    cfg = load('maskrcnn_cvt13_fpn_coco')
    two = estimate_memory(cfg).passes
    cfg.train_dataloader.batch_size = 4
    four = estimate_memory(cfg).passes
    assert 1.8 * two < four <= 2 * two
    cfg.model.backbone.with_cp = True
    recomputed = estimate_memory(cfg).passes
    assert recomputed < 0.8 * four
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    assert estimate_memory(cfg).passes < 0.8 * recomputed


def test_heads_that_need_values_are_named() -> None:
    assert estimate_memory(load('mask2former_cvt13_ade20k')).left_out == ('decode_head',)
    assert 'bbox_head' in estimate_memory(load('dino_cvt13_coco')).left_out


@pytest.mark.parametrize(
    'name', ['cascademaskrcnn_cvt13_fpn_coco_3x', 'fasterrcnn_cvt13_fpn_coco', 'semanticfpn_cvt13_ade20k_80k']
)
def test_other_heads_are_run(name: str) -> None:
    assert estimate_memory(load(name)).left_out == ()
