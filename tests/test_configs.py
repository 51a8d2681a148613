from __future__ import annotations

import re
from pathlib import Path

import mmdet.models  # noqa: F401  fills the registries
import mmseg.models  # noqa: F401
import numpy as np
import pytest
import torch
import yaml
from count_flops import count
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from paths import ROOT
from torch import nn

from cvt_dense.engine.launch import use_batchnorm_without_gpu
from cvt_dense.registry import type_name

CONFIGS = ROOT / 'configs'
DETECTION = [
    *(f'maskrcnn_{arch}_fpn_coco{schedule}' for arch in ('cvt13', 'cvt21', 'cvtw24') for schedule in ('', '_3x')),
    *(f'cascademaskrcnn_{arch}_fpn_coco_3x' for arch in ('cvt13', 'cvt21', 'cvtw24')),
    *(f'{method}_{arch}_fpn_coco' for method in ('fasterrcnn', 'retinanet') for arch in ('cvt13', 'cvt21')),
    'dino_cvt13_coco',
    'dino_cvt21_coco',
    'maskrcnn_cvt13_fpn_coco_windowed',
    'maskrcnn_cvtw24_fpn_coco_fsdp',
]
SEGMENTATION = [
    'upernet_cvt13_ade20k',
    'upernet_cvt21_ade20k',
    'upernet_cvtw24_ade20k',
    'semanticfpn_cvt13_ade20k_80k',
    'semanticfpn_cvt21_ade20k_80k',
    'mask2former_cvt13_ade20k',
    'mask2former_cvt21_ade20k',
    'upernet_cvt13_cityscapes',
    'upernet_cvt21_cityscapes',
]
OWN_DATA = ['maskrcnn_cvt13_fpn_custom', 'upernet_cvt13_custom']
DEMO = ['maskrcnn_cvttiny_fpn_shapes', 'upernet_cvttiny_shapes', 'maskrcnn_cvttiny_fpn_nuclei']
COMPARISON = [
    f'comparison/{task}'
    for net in ('cvt', 'swin', 'resnet')
    for task in (f'maskrcnn_{net}small_nuclei', f'upernet_{net}small_camvid')
]
NEW_STYLE = ['new_style/maskrcnn_cvttiny_fpn_shapes']  # of mmengine: types are classes
ALL_DETECTION = [*DETECTION, OWN_DATA[0], DEMO[0], DEMO[2], *COMPARISON[::2], *NEW_STYLE]
ALL_SEGMENTATION = [*SEGMENTATION, OWN_DATA[1], DEMO[1], *COMPARISON[1::2]]
HEIGHT, WIDTH = 64, 96
MODEL_INDEX = {model['Name']: model for model in yaml.safe_load((CONFIGS / 'metafile.yml').read_text())['Models']}


def load(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    use_batchnorm_without_gpu(cfg)
    if 'roi_head' in cfg.model:  # few proposals: a step on a CPU would take seconds otherwise
        cfg.model.train_cfg.rpn_proposal.max_per_img = cfg.model.test_cfg.rpn.max_per_img = 20
        rcnn = cfg.model.train_cfg.rcnn
        for stage in rcnn if isinstance(rcnn, list) else [rcnn]:
            stage.sampler.num = 16
    if 'num_queries' in cfg.model:
        cfg.model.num_queries = 20  # as many as small images have tokens
    return cfg


def num_classes_of(cfg: Config) -> int:
    heads = (cfg.model.roi_head if 'roi_head' in cfg.model else cfg.model).bbox_head
    return (heads[0] if isinstance(heads, list) else heads).num_classes


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
            labels=torch.tensor([min(label, num_classes - 1), num_classes - 1]),
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


def assert_parameters_are_those_of_the_index(name: str, model: nn.Module) -> None:
    if '/' not in name:
        parameters = sum(p.numel() for p in model.parameters())
        if name.startswith('dino'):
            parameters += 880 * 256  # queries that load() has taken away
            # The index has the fork's, which codes a reference box in 1024 numbers; upstream has 512.
            parameters += (1024 - model.decoder.ref_point_head.layers[0].in_features) * 256
        assert parameters == MODEL_INDEX[name]['Metadata']['Parameters'], f'{name} has {parameters} parameters'


def train_step(model: nn.Module, batch: dict) -> None:
    """One training step: finite losses, and finite gradients in every trainable parameter."""
    model.train()
    data = model.data_preprocessor(batch, training=True)
    loss, _ = model.parse_losses(model(**data, mode='loss'))
    assert loss.isfinite()
    loss.backward()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if p.grad is None or not p.grad.isfinite().all()] == []
    first = next(name for name in trainable if name.startswith('backbone.'))
    assert trainable[first].grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL_DETECTION)
def test_a_detector_trains_and_predicts(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    assert_parameters_are_those_of_the_index(name, model)
    num_classes = num_classes_of(cfg)
    train_step(model, detection_batch(num_classes))
    with torch.no_grad():
        results = model.eval().test_step(detection_batch(num_classes))
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        if 'maskrcnn' in name:
            assert found.masks.shape == (len(found), HEIGHT, WIDTH)
        assert found.bboxes.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize('name', ALL_SEGMENTATION)
def test_a_segmentor_trains_and_predicts(name: str) -> None:
    cfg = load(name)
    cfg.model.data_preprocessor.size = (HEIGHT, WIDTH)  # crops would be padded to this
    model = build(cfg)
    assert_parameters_are_those_of_the_index(name, model)
    num_classes = cfg.model.decode_head.num_classes
    train_step(model, segmentation_batch(num_classes))
    with torch.no_grad():
        results = model.eval().test_step(dict(segmentation_batch(num_classes)))
    assert [tuple(r.pred_sem_seg.data.shape) for r in results] == [(1, HEIGHT, WIDTH)] * 2


def test_every_config_is_listed_here() -> None:
    found = {str(path.relative_to(CONFIGS).with_suffix('')) for path in CONFIGS.rglob('*.py')}
    assert {name for name in found if '_base_' not in name} == {*ALL_DETECTION, *ALL_SEGMENTATION}


@pytest.mark.parametrize('name', [*DETECTION, *SEGMENTATION])
def test_weights_of_the_same_variant_from_imagenet_22k_are_named(name: str) -> None:
    backbone = Config.fromfile(CONFIGS / f'{name}.py').model.backbone
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=f'{backbone.arch}-384x384-in22k')
    assert backbone.arch.replace('-', '') == name.split('_')[1]


@pytest.mark.parametrize('name', ['maskrcnn_cvt13_fpn_custom', 'upernet_cvt13_custom'])
def test_own_data_needs_its_names_alone(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('CUSTOM_ROOT', 'my/data')
    (tmp_path / 'configs').symlink_to(CONFIGS)
    text = (CONFIGS / f'{name}.py').read_text().replace("_base_ = '", "_base_ = 'configs/")
    text = re.sub(r'^classes = .*', "classes = ('cat', 'dog', 'fish')", text, flags=re.MULTILINE)
    (tmp_path / 'mine.py').write_text(text)
    cfg = Config.fromfile(tmp_path / 'mine.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == 'my/data'
        assert loader.dataset.metainfo.classes == ('cat', 'dog', 'fish')
    model = cfg.model
    heads = [model.roi_head.bbox_head, model.roi_head.mask_head] if 'roi_head' in model else None
    assert [head.num_classes for head in heads or (model.decode_head, model.auxiliary_head)] == [3, 3]


def test_the_index_names_all_configs_and_their_files() -> None:
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    assert index == dict(Import=['configs/metafile.yml'])
    assert set(MODEL_INDEX) == {path.stem for path in CONFIGS.glob('*.py')}
    for name, model in MODEL_INDEX.items():
        assert model['Config'] == f'configs/{name}.py'
        assert model['Results'] == []


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet_cvt13_fpn_coco', 'upernet_cvt13_ade20k', 'maskrcnn_cvttiny_fpn_shapes'])
def test_the_index_has_the_operations_that_are_counted(name: str) -> None:
    metadata = MODEL_INDEX[name]['Metadata']
    parameters, macs, size = count(Config.fromfile(CONFIGS / f'{name}.py'))
    assert (parameters, f'{size[0]}x{size[1]}') == (metadata['Parameters'], metadata['Input Size'])
    # Random proposals overlap a little differently with each version of PyTorch.
    assert macs == pytest.approx(metadata['FLOPs'], rel=0.01)


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


@pytest.mark.parametrize('name', [*ALL_DETECTION, *ALL_SEGMENTATION])
def test_every_run_can_be_watched(name: str) -> None:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    hooks = cfg.default_hooks
    assert (type_name(hooks.curves), type_name(hooks.samples)) == ('CurvesHook', 'SamplesHook')
    assert hooks.checkpoint.save_best == ('coco/bbox_mAP' if name in ALL_DETECTION else 'mIoU')
    if name in ALL_DETECTION:
        assert cfg.val_evaluator.classwise
        assert cfg.test_evaluator.classwise


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
