from __future__ import annotations

from pathlib import Path

import mmdet.models  # noqa: F401  fills the registries
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
from conftest import ROOT
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from torch import nn

from cvt_dense.launch import use_batchnorm_without_gpu

CONFIGS = ROOT / 'configs'
DETECTION = ['maskrcnn_cvt13_fpn_coco', 'maskrcnn_cvt21_fpn_coco', 'maskrcnn_cvtw24_fpn_coco']
SEGMENTATION = ['upernet_cvt13_ade20k', 'upernet_cvt21_ade20k', 'upernet_cvtw24_ade20k']
DEMO = ['maskrcnn_cvttiny_fpn_shapes', 'upernet_cvttiny_shapes']
HEIGHT, WIDTH = 64, 96


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    use_batchnorm_without_gpu(cfg)
    if 'roi_head' in cfg.model:  # few proposals: a step on a CPU would take seconds otherwise
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 20
        cfg.model.train_cfg.rcnn.sampler.num = 16
    return cfg


def build(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def detection_batch(num_classes: int) -> dict:
    samples = []
    for label in range(2):
        boxes = torch.tensor([[8.0, 8.0, 40.0, 44.0], [30.0, 10.0, 90.0, 60.0]])
        masks = np.zeros((2, HEIGHT, WIDTH), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist()):
            mask[y1:y2, x1:x2] = 1
        instances = InstanceData(
            bboxes=boxes,
            labels=torch.tensor([label, num_classes - 1]),
            masks=BitmapMasks(masks, HEIGHT, WIDTH),
        )
        sample = DetDataSample(gt_instances=instances, metainfo=metainfo())
        sample.ignored_instances = InstanceData(bboxes=torch.empty(0, 4), labels=torch.empty(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=list(images()), data_samples=samples)


def segmentation_batch(num_classes: int) -> dict:
    labels = torch.randint(num_classes, (2, 1, HEIGHT, WIDTH))
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label), metainfo=metainfo()) for label in labels]
    return dict(inputs=list(images()), data_samples=samples)


def images() -> torch.Tensor:
    return torch.randint(256, (2, 3, HEIGHT, WIDTH), dtype=torch.uint8)


def metainfo() -> dict:
    size = (HEIGHT, WIDTH)
    return dict(img_shape=size, ori_shape=size, pad_shape=size, scale_factor=(1.0, 1.0), img_id=0, img_path='')


def train_step(model: nn.Module, batch: dict) -> None:
    """One training step: finite losses, and finite gradients in every trainable parameter."""
    model.train()
    data = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
    loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    assert any(p.grad.abs().max() > 0 for name, p in trainable.items() if name.startswith('backbone.stage0'))


@pytest.mark.parametrize('name', [*DETECTION, DEMO[0]])
def test_a_detector_trains_and_predicts(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    num_classes = cfg.model.roi_head.bbox_head.num_classes
    train_step(model, detection_batch(num_classes))
    with torch.no_grad():
        results = model.eval().test_step(detection_batch(num_classes))
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert found.masks.shape == (len(found), HEIGHT, WIDTH)
        assert found.bboxes.isfinite().all()


@pytest.mark.parametrize('name', [*SEGMENTATION, DEMO[1]])
def test_a_segmentor_trains_and_predicts(name: str) -> None:
    cfg = load(name)
    cfg.model.data_preprocessor.size = (HEIGHT, WIDTH)  # crops would be padded to this
    model = build(cfg)
    num_classes = cfg.model.decode_head.num_classes
    train_step(model, segmentation_batch(num_classes))
    with torch.no_grad():
        results = model.eval().test_step(dict(segmentation_batch(num_classes)))
    assert [tuple(r.pred_sem_seg.data.shape) for r in results] == [(1, HEIGHT, WIDTH)] * 2


def test_every_config_is_listed_here() -> None:
    assert {path.stem for path in CONFIGS.glob('*.py')} == {*DETECTION, *SEGMENTATION, *DEMO}


@pytest.mark.parametrize('name', [*DETECTION, *SEGMENTATION])
def test_weights_of_the_same_variant_from_imagenet_22k_are_named(name: str) -> None:
    backbone = Config.fromfile(CONFIGS / f'{name}.py').model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'{backbone.arch}-384x384-in22k')
    assert backbone.arch.replace('-', '') == name.split('_')[1]


@pytest.mark.parametrize('name', [DETECTION[0], SEGMENTATION[0]])
def test_norms_biases_and_the_cls_token_are_not_decayed(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    norms = {id(p) for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d)) for p in m.parameters()}
    for parameter_name, p in model.named_parameters():
        exempt = id(p) in norms or parameter_name.endswith(('bias', 'cls_token'))
        assert decay[id(p)] == (0.0 if exempt else cfg.optim_wrapper.optimizer.weight_decay), parameter_name


def test_data_roots_come_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    roots = [
        ('COCO_ROOT', DETECTION[0], 'data/coco'),
        ('ADE20K_ROOT', SEGMENTATION[0], 'data/ade/ADEChallengeData2016'),
    ]
    for variable, name, default in roots:
        monkeypatch.delenv(variable, raising=False)
        assert Config.fromfile(CONFIGS / f'{name}.py').train_dataloader.dataset.data_root == default
        monkeypatch.setenv(variable, str(tmp_path / 'my data'))
        cfg = Config.fromfile(CONFIGS / f'{name}.py')
        assert cfg.val_dataloader.dataset.data_root == str(tmp_path / 'my data')
    assert Config.fromfile(CONFIGS / f'{DETECTION[0]}.py').val_evaluator.ann_file.startswith(str(tmp_path / 'my data'))
