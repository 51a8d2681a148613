"""The estimate of a training step's memory, compared with the tensors that live in a real step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from costs import Costs
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement, InstanceData, PixelData
from mmseg.structures import SegDataSample
from paths import ROOT
from torch.nn.modules.module import register_module_forward_hook

from cvt_dense.analysis.memory import MemoryEstimate, estimate_memory, image_size
from cvt_dense.engine.model import build_model

CONFIGS = ROOT / 'configs'
SEGMENTOR, DETECTOR = 'upernet_cvttiny_shapes', 'maskrcnn_cvttiny_fpn_shapes'


def load(name: str, batch_size: int | None = None) -> Config:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    cfg.train_dataloader.batch_size = batch_size or cfg.train_dataloader.batch_size
    return cfg


def estimate_for(cfg: Config) -> MemoryEstimate:
    """As the doctor estimates it."""
    with torch.device('meta'):
        model = build_model(cfg)
    return estimate_memory(cfg, model)


def detector_without_masks(batch_size: int) -> Config:
    """Its heads take as many regions in each step, while masks are predicted for the objects that were found."""
    cfg = load(DETECTOR, batch_size)
    cfg.model.roi_head.mask_head = cfg.model.roi_head.mask_roi_extractor = None
    return cfg


def test_of_the_passes_and_the_optimizers_step_the_larger_one_counts() -> None:
    parts: dict[str, Any] = dict(parameters=1, gradients=10, optimizer=100, size=(1, 1), batch_size=1, left_out=())
    assert MemoryEstimate(passes=15, **parts).total == 1 + 100 + 2 * 10
    assert MemoryEstimate(passes=30, **parts).total == 1 + 100 + 30


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


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([dict(type='RandomResize', scale=(400, 300), ratio_range=(0.5, 2.0))], (600, 800)),
        ([dict(type='Resize', scale=(400, 300)), dict(type='RandomCrop', crop_size=200)], (200, 200)),
        (
            [
                dict(type='Resize', scale=(400, 300)),
                dict(type='RandomCrop', crop_size=(0.5, 0.5), crop_type='relative_range'),
            ],
            (300, 400),
        ),
        ([dict(type='RandomResize', scale=[(400, 300), (640, 480)])], (480, 640)),
        (
            [
                dict(
                    type='RandomChoice',
                    transforms=[[dict(type='Resize', scale=s)] for s in ((400, 300), (640, 480), (80, 60))],
                )
            ],
            (480, 640),
        ),
        ([dict(type='Resize', scale_factor=2.0)], None),
        ([dict(type='LoadImageFromFile')], None),
    ],
)
def test_the_largest_size_that_a_pipeline_makes_counts(
    pipeline: list[dict[str, Any]], size: tuple[int, int] | None
) -> None:
    assert image_size(Config(dict(model=dict(), train_dataloader=dict(dataset=dict(pipeline=pipeline))))) == size


@pytest.mark.parametrize('name', [SEGMENTOR, DETECTOR])
def test_parameters_gradients_and_optimizer_are_those_of_the_model(name: str) -> None:
    cfg = load(name, batch_size=1)
    model = build(cfg)
    for optimizer, states in (('AdamW', 2), ('SGD', 1)):
        cfg.optim_wrapper.optimizer.type = optimizer
        estimate = estimate_for(cfg)
        assert estimate.left_out == ()
        assert estimate.parameters == sum(t.nbytes for t in [*model.parameters(), *model.buffers()])
        assert estimate.gradients == sum(p.nbytes for p in model.parameters())
        assert estimate.optimizer == states * estimate.gradients
    cfg.model.backbone.frozen_stages = 0
    assert estimate_for(cfg).gradients == sum(p.nbytes for p in build(cfg).parameters() if p.requires_grad)


def build(cfg: Config) -> torch.nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(cfg.model).train()


def labelled(cfg: Config, height: int, width: int) -> BaseDataElement:
    """The ground truth of an image, of any content."""
    meta = dict.fromkeys(('img_shape', 'pad_shape', 'ori_shape', 'batch_input_shape'), (height, width))
    if cfg.default_scope == 'mmseg':
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=torch.zeros(1, height, width, dtype=torch.long))
        return sample
    sample = DetDataSample(metainfo=meta)
    masks = np.zeros((2, height, width), np.uint8)
    masks[0, 10:60, 10:60], masks[1, 80:140, 80:150] = 1, 1
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor([[10.0, 10.0, 60.0, 60.0], [80.0, 80.0, 150.0, 140.0]]),
        labels=torch.tensor([0, 1]),
        masks=BitmapMasks(masks, height, width),
    )
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
    return sample


def live_in_a_step(cfg: Config, size: tuple[int, int]) -> int:
    """The most bytes of tensors at one time, beside parameters, while the config's model is trained on a batch."""
    model, count = build(cfg), cfg.train_dataloader.batch_size
    with Costs() as costs:
        losses = model.loss(torch.randn(count, 3, *size), [labelled(cfg, *size) for _ in range(count)])
        model.parse_losses(losses)[0].backward()
    return costs.peak_bytes


def test_a_segmentors_passes_are_those_of_a_real_step() -> None:
    cfg = load(SEGMENTOR, batch_size=2)
    estimate = estimate_for(cfg)
    assert estimate.passes == pytest.approx(live_in_a_step(cfg, estimate.size), rel=0.02)


def test_a_detectors_passes_are_those_of_a_real_step() -> None:
    cfg = detector_without_masks(batch_size=2)
    estimate = estimate_for(cfg)
    assert estimate.passes == pytest.approx(live_in_a_step(cfg, estimate.size), rel=0.15)


def test_passes_grow_with_the_batch_and_shrink_with_recomputing_and_precision() -> None:
    cfg = load(DETECTOR, batch_size=2)
    two = estimate_for(cfg).passes
    cfg.train_dataloader.batch_size = 4
    four = estimate_for(cfg).passes
    assert 1.8 * two < four <= 2.1 * two
    cfg.model.backbone.with_cp = True
    recomputed = estimate_for(cfg).passes
    assert recomputed < 0.8 * four
    cfg.optim_wrapper.type = 'BFloat16OptimWrapper'
    assert estimate_for(cfg).passes < 0.8 * recomputed


def test_heads_that_need_values_are_named() -> None:
    assert estimate_for(load('mask2former_cvt13_ade20k', 1)).left_out == ('decode_head',)
    assert 'bbox_head' in estimate_for(load('dino_cvt13_coco', 1)).left_out


@pytest.fixture
def calls() -> Iterator[dict[str, list[int]]]:
    """Of each kind of module that was called, the sizes of the first dimension of what it took; 0 for several maps."""
    sizes: dict[str, list[int]] = {}

    def note(module: torch.nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        size = len(inputs[0]) if isinstance(inputs[0], torch.Tensor) else 0
        sizes.setdefault(type(module).__name__, []).append(size)

    hook = register_module_forward_hook(note)
    yield sizes
    hook.remove()


@pytest.mark.parametrize(
    ('name', 'heads'),
    [
        (DETECTOR, {'RPNHead': 1, 'Shared2FCBBoxHead': 1, 'FCNMaskHead': 1}),
        ('cascademaskrcnn_cvt13_fpn_coco_3x', {'RPNHead': 1, 'Shared2FCBBoxHead': 3, 'FCNMaskHead': 3}),
        ('retinanet_cvt13_fpn_coco', {'RetinaHead': 1}),
        ('semanticfpn_cvt13_ade20k_80k', {'FPNHead': 1}),
        (SEGMENTOR, {'UPerHead': 1, 'FCNHead': 1}),
    ],
)
def test_each_head_is_run(name: str, heads: dict[str, int], calls: dict[str, list[int]]) -> None:
    assert estimate_for(load(name, 1)).left_out == ()
    assert {kind: len(calls.get(kind, ())) for kind in heads} == heads


def test_a_dense_head_takes_four_maps_a_class() -> None:
    """Predictions, targets, losses and gradients."""
    cfg = load('retinanet_cvt13_fpn_coco', 1)
    fewer = estimate_for(cfg)
    cfg.model.bbox_head.num_classes += 80
    places = sum(-(-fewer.size[0] // stride) * -(-fewer.size[1] // stride) for stride in (8, 16, 32, 64, 128))
    assert estimate_for(cfg).passes - fewer.passes > 4 * 80 * 9 * places * 4  # 9 anchors a place, 4 bytes


def test_heads_of_regions_take_as_many_as_the_sampler_draws_at_most(calls: dict[str, list[int]]) -> None:
    cfg = load(DETECTOR, batch_size=4)
    cfg.model.train_cfg.rcnn.sampler.update(num=50, pos_fraction=0.3)
    estimate_for(cfg)
    assert (calls['Shared2FCBBoxHead'], calls['FCNMaskHead']) == ([200], [60])
