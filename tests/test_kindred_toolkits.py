"""A config each of the toolkits that are kin to mmdetection and mmsegmentation, with CvT as its backbone.

They need packages that the others do not, mmpretrain an older transformers too, so they are not in the tests'
environment and skipped there. In another one:

    pip install onedl-mmpretrain onedl-mmrotate 'transformers<4.50'
    python -m pytest tests/test_kindred_toolkits.py
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from toolkit_configs import ARCHS
from torch import nn

from cvt_dense import CvT
from cvt_dense.backbones.padding import announced_sizes

SIZES = [(96, 128), (128, 96)]
CHANNELS = CvT.returned_maps(ARCHS['CvT'], (0, 1, 2, 3)).channels


def toolkit(name: str) -> Any:
    try:
        import_module(f'{name}.models')
    except (ImportError, TypeError, RuntimeError) as error:  # TypeError: mmpretrain with a newer transformers
        pytest.skip(f'{name} is not installed, or does not work with what is: {error}')
    return import_module(name)


def config_of(package: Any, path: str, out_indices: tuple[int, ...]) -> Config:
    cfg = Config.fromfile(Path(package.__file__).parent / '.mim/configs' / path, import_custom_modules=False)
    cfg.model.backbone = dict(type='CvT', arch=ARCHS['CvT'], out_indices=out_indices)
    return cfg


def train_a_step(model: nn.Module, data: dict[str, Any]) -> None:
    losses = model.train()(**model.data_preprocessor(data, True), mode='loss')
    model.parse_losses(losses)[0].backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def classified(sizes: list[tuple[int, int]]) -> dict[str, Any]:
    from mmpretrain.structures import DataSample

    samples = [DataSample(metainfo=dict(img_shape=size)).set_gt_label(1) for size in sizes]
    return dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes], data_samples=samples)


def test_mmpretrain_classifies_the_pooled_map() -> None:
    cfg = config_of(toolkit('mmpretrain'), 'resnet/resnet50_8xb32_in1k.py', out_indices=(2,))
    cfg.model.head.in_channels = CHANNELS[2]
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.registry import MODELS

        model = MODELS.build(dict(cfg.model, data_preprocessor=cfg.data_preprocessor))
        train_a_step(model, classified([(64, 64)] * 2))
        with torch.no_grad():
            (prediction,) = model.eval().test_step(classified([(50, 71)]))
    assert prediction.pred_score.shape == (1000,)


def test_mmpretrain_classifies_the_cls_token_of_timms_model() -> None:
    toolkit('mmpretrain')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        from mmpretrain.registry import MODELS

        settings = dict(model_name='cvt_13', num_classes=1000, loss=dict(type='CrossEntropyLoss'))
        model = MODELS.build(dict(type='TimmClassifier', **settings, data_preprocessor=dict(num_classes=1000)))
        train_a_step(model, classified([(64, 64)] * 2))


def test_mmrotate_detects_rotated_boxes_in_images_of_mixed_sizes() -> None:
    path = 'rotated_retinanet/rotated-retinanet-rbox-le90_r50_fpn_1x_dota.py'
    cfg = config_of(toolkit('mmrotate'), path, out_indices=(0, 1, 2, 3))
    cfg.model.neck.in_channels = list(CHANNELS)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmrotate'):
        from mmrotate.registry import MODELS
        from mmrotate.structures import RotatedBoxes

        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        samples = []
        for size in SIZES:
            sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1, 1)))
            boxes = RotatedBoxes(torch.tensor([[40.0, 40, 20, 10, 0.3]]))
            sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1]))
            nothing = dict(bboxes=RotatedBoxes(torch.zeros(0, 5)), labels=torch.zeros(0, dtype=torch.long))
            sample.ignored_instances = InstanceData(**nothing)
            samples.append(sample)
        images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in SIZES]
        data = dict(inputs=images, data_samples=samples)
        told: list[Any] = []
        model.backbone.register_forward_pre_hook(lambda module, args: told.append(announced_sizes(args[0])))
        train_a_step(model, data)
        with torch.no_grad():
            assert len(model.eval().test_step(data)) == 2
    assert told == [SIZES, SIZES]
