from __future__ import annotations

import ast
import re
from collections.abc import Callable
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
from mmengine.registry import MODELS, TRANSFORMS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from paths import ROOT
from torch import nn

from cvt_dense.checkpoints import PUBLISHED
from cvt_dense.datasets.heads import heads_with_classes
from cvt_dense.engine.launch import use_batchnorm_without_gpu
from cvt_dense.registry import type_name

CONFIGS = ROOT / 'configs'
DETECTION = [
    *(f'maskrcnn_{arch}_fpn_coco{schedule}' for arch in ('cvt13', 'cvt21', 'cvtw24') for schedule in ('', '_3x')),
    *(f'cascademaskrcnn_{arch}_fpn_coco_3x' for arch in ('cvt13', 'cvt21', 'cvtw24')),
    *(f'{method}_{arch}_fpn_coco' for method in ('fasterrcnn', 'retinanet') for arch in ('cvt13', 'cvt21')),
    *(f'{method}_{arch}_fpn_coco' for method in ('maskrcnn', 'retinanet') for arch in ('cmts', 'cmtxs')),
    'dino_cvt13_coco',
    'dino_cvt21_coco',
    'maskrcnn_cvt13_fpn_coco_windowed',
    'maskrcnn_cvtw24_fpn_coco_fsdp',
]
SEGMENTATION = [
    'upernet_cvt13_ade20k',
    'upernet_cvt21_ade20k',
    'upernet_cvtw24_ade20k',
    'upernet_cmts_ade20k',
    'upernet_cmtxs_ade20k',
    'semanticfpn_cvt13_ade20k_80k',
    'semanticfpn_cvt21_ade20k_80k',
    'mask2former_cvt13_ade20k',
    'mask2former_cvt21_ade20k',
    'upernet_cvt13_cityscapes',
    'upernet_cvt21_cityscapes',
]
OWN_DATA = ['maskrcnn_cvt13_fpn_custom', 'fasterrcnn_cvt13_fpn_custom', 'upernet_cvt13_custom']
DEMO = [
    'maskrcnn_cvttiny_fpn_shapes',
    'upernet_cvttiny_shapes',
    'maskrcnn_cvttiny_fpn_nuclei',
    'fasterrcnn_cvttiny_fpn_shapes',
]
COMPARISON = [
    f'comparison/{task}'
    for net in ('cvt', 'swin', 'resnet')
    for task in (f'maskrcnn_{net}small_nuclei', f'upernet_{net}small_camvid')
]
NEW_STYLE = ['new_style/maskrcnn_cvttiny_fpn_shapes']  # of mmengine: types are classes
RECIPE = ['comparison/maskrcnn_cvtsmall_nuclei_scratch', 'comparison/upernet_cvtsmall_camvid_scratch']
ALL_DETECTION = [*DETECTION, *OWN_DATA[:2], DEMO[0], *DEMO[2:], *COMPARISON[::2], RECIPE[0], *NEW_STYLE]
ALL_SEGMENTATION = [
    *SEGMENTATION,
    OWN_DATA[2],
    DEMO[1],
    *COMPARISON[1::2],
    RECIPE[1],
    'comparison/upernet_cvtsmall_camvid_whole',
]
#: Those that differ from one that is trained here in the backbone's variant or in the schedule alone.
LIKE_OTHERS = {
    name
    for name in (*DETECTION, *SEGMENTATION)
    if re.search(r'cvt21|cvtw24|cmts|_3x', name)
    and name not in ('cascademaskrcnn_cvt13_fpn_coco_3x', 'maskrcnn_cvtw24_fpn_coco_fsdp', 'upernet_cvt21_ade20k')
}
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


@pytest.mark.parametrize('name', sorted(LIKE_OTHERS))
def test_a_config_that_is_like_others_has_parts_that_fit(name: str) -> None:
    """Without memory for its weights, or arithmetic."""
    cfg = load(name)
    with torch.device('meta'), DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
        assert_parameters_are_those_of_the_index(name, model)
        maps = model.eval().extract_feat(torch.empty(2, 3, HEIGHT, WIDTH))
    assert {x.shape[0] for x in maps} == {2}


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in ALL_DETECTION if name not in LIKE_OTHERS])
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
@pytest.mark.parametrize('name', [name for name in ALL_SEGMENTATION if name not in LIKE_OTHERS])
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
def test_weights_of_the_same_variant_from_the_most_data_are_named(name: str) -> None:
    backbone = Config.fromfile(CONFIGS / f'{name}.py').model.backbone
    weights = f'{backbone.arch}-384x384-in22k'
    if type_name(backbone) == 'CMT':  # published for ImageNet-1k alone, at a size of each variant's own
        weights = next(name for name in PUBLISHED if name.startswith(f'{backbone.arch}-'))
    assert backbone.init_cfg == dict(type='Pretrained', checkpoint=weights)
    assert backbone.arch.replace('-', '') == name.split('_')[1]


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Config]:
    """Reads a copy of a config for own data, with lines at its top replaced."""

    def read(name: str, **lines: str) -> Config:
        monkeypatch.setenv('CUSTOM_ROOT', 'my/data')
        if not (tmp_path / 'configs').exists():
            (tmp_path / 'configs').symlink_to(CONFIGS)
        text = (CONFIGS / f'{name}.py').read_text()
        for key, value in lines.items():
            text, count = re.subn(rf'^{key} = .*', f'{key} = {value}', text, flags=re.MULTILINE)
            assert count == 1, key
        (tmp_path / 'mine.py').write_text(text.replace("_base_ = '", "_base_ = 'configs/"))
        return Config.fromfile(tmp_path / 'mine.py')

    return read


@pytest.mark.parametrize('name', OWN_DATA)
def test_own_data_needs_its_names_alone(name: str, copied: Callable[..., Config]) -> None:
    cfg = copied(name, classes="('cat', 'dog', 'fish')")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == 'my/data'
        assert loader.dataset.metainfo.classes == ('cat', 'dog', 'fish')
    assert set(heads_with_classes(cfg).values()) == {3}
    assert cfg.test_dataloader == cfg.val_dataloader
    assert cfg.test_evaluator == cfg.val_evaluator


@pytest.mark.parametrize('name', OWN_DATA[:2])
def test_a_test_split_of_ones_own_is_a_line(name: str, copied: Callable[..., Config]) -> None:
    cfg = copied(name, **{'test_annotations, test_images': "'test.json', 'test/'"})
    assert cfg.test_dataloader.dataset.ann_file == 'test.json'
    assert cfg.test_dataloader.dataset.data_prefix.img == 'test/'
    assert cfg.test_evaluator.ann_file == 'my/data/test.json'
    assert cfg.val_evaluator.ann_file == 'my/data/annotations/val.json'


def test_a_test_split_of_label_maps_is_a_line(copied: Callable[..., Config]) -> None:
    cfg = copied(OWN_DATA[2], **{'test_images, test_labels': "'images/test', 'annotations/test'"})
    assert cfg.test_dataloader.dataset.data_prefix == dict(img_path='images/test', seg_map_path='annotations/test')
    assert cfg.test_dataloader.dataset.pipeline == cfg.val_dataloader.dataset.pipeline


def test_masks_or_boxes_alone_is_the_base_of_own_data(copied: Callable[..., Config]) -> None:
    """So a copy of either becomes the other by its second line, and what they share is the same in both."""
    texts = [(CONFIGS / f'{name}.py').read_text().partition('\n\n') for name in OWN_DATA[:2]]
    assert texts[0][2] == texts[1][2]
    for name in OWN_DATA[:2]:
        masks, boxes = (copied(name, _base_=f"'{method}_cvt13_fpn_coco.py'") for method in ('maskrcnn', 'fasterrcnn'))
        assert masks.val_evaluator.metric == ['bbox', 'segm']
        assert boxes.val_evaluator.metric == boxes.test_evaluator.metric == 'bbox'
        for dataset in (boxes.train_dataloader.dataset, boxes.val_dataloader.dataset, boxes.test_dataloader.dataset):
            assert not any(step.get('with_mask') for step in dataset.pipeline)
        assert boxes.model.roi_head.mask_head is None
        assert masks.model.roi_head.mask_head.num_classes == 1


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


@pytest.mark.parametrize('name', [DETECTION[0], SEGMENTATION[0], 'retinanet_cmtxs_fpn_coco', 'upernet_cmtxs_ade20k'])
def test_norms_biases_the_cls_token_and_the_position_bias_are_not_decayed(name: str) -> None:
    cfg = load(name)
    model = build(cfg)
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper).optimizer
    decay = {id(p): group['weight_decay'] for group in optimizer.param_groups for p in group['params']}
    norms = {id(p) for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d)) for p in m.parameters()}
    for parameter_name, p in model.named_parameters():
        exempt = id(p) in norms or parameter_name.endswith(('bias', 'cls_token')) or 'relative_pos' in parameter_name
        assert decay[id(p)] == (0.0 if exempt else cfg.optim_wrapper.optimizer.weight_decay), parameter_name


@pytest.mark.parametrize('name', [*COMPARISON[1::2], RECIPE[1]])
def test_colours_of_the_comparison_are_distorted_by_an_option(name: str) -> None:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.random.seed(0)  # what the transforms draw from
    changed = []
    for options in ({}, {'train_dataloader.dataset.pipeline.5.prob': 1.0}):
        cfg.merge_from_dict(options)
        with DefaultScope.overwrite_default_scope('mmseg'):
            transform = TRANSFORMS.build(cfg.train_dataloader.dataset.pipeline[5])
        results = [transform(dict(img=image.copy()))['img'] for _ in range(10)]  # each change is there half of the time
        changed.append(any((result != image).any() for result in results))
    assert changed == [False, True]


@pytest.mark.parametrize('name', [*ALL_DETECTION, *ALL_SEGMENTATION])
def test_every_run_can_be_watched(name: str) -> None:
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    hooks = cfg.default_hooks
    assert (type_name(hooks.curves), type_name(hooks.samples)) == ('CurvesHook', 'SamplesHook')
    assert hooks.checkpoint.save_best == ('coco/bbox_mAP' if name in ALL_DETECTION else 'mIoU')
    if name in ALL_DETECTION:
        assert cfg.val_evaluator.classwise
        assert cfg.test_evaluator.classwise


#: The recipes whose rate is for 16 images, two on each of eight GPUs: what the base configs of schedules say.
FOR_16 = dict.fromkeys([*DETECTION, *SEGMENTATION, *OWN_DATA], 16)


@pytest.mark.parametrize('name', [*ALL_DETECTION, *ALL_SEGMENTATION])
def test_the_base_batch_size_is_what_the_rate_is_for(name: str) -> None:
    """That of the 16-image recipes, or the batch of one process: small configs are trained so, at a rate for that."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    batch_size = cfg.train_dataloader.batch_size
    assert cfg.auto_scale_lr == dict(enable=False, base_batch_size=FOR_16.get(name, batch_size))
    assert (batch_size == 2) == (name in FOR_16 or name.endswith('_whole'))


@pytest.mark.parametrize('path', sorted(CONFIGS.rglob('*.py')), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_file_that_sets_a_rate_or_a_batch_says_what_the_rate_is_for(path: Path) -> None:
    """Else it would inherit what another rate is for. Files of data alone know no rate."""
    cfg: dict[str, str] = {}
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            cfg[node.targets[0].id] = ast.unparse(node.value)
    sets_rate = re.search(r'\blr=', cfg.get('optim_wrapper', ''))
    sets_batch = 'batch_size=' in cfg.get('train_dataloader', '') and path.parent.name != 'datasets'
    if sets_rate or sets_batch:
        assert 'base_batch_size=' in cfg.get('auto_scale_lr', '')


#: Configs of data whose pictures are all of one size, which can be evaluated in batches.
ONE_SIZE = ('shapes', 'camvid')


@pytest.mark.parametrize('name', [*ALL_DETECTION, *ALL_SEGMENTATION])
def test_pictures_of_mixed_sizes_are_evaluated_one_by_one(name: str) -> None:
    """Heads see the padding of a batch (tests/test_mixed_batches.py), and mmseg refuses one of several sizes."""
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    if not any(data in name for data in ONE_SIZE):
        assert (cfg.val_dataloader.batch_size, cfg.test_dataloader.batch_size) == (1, 1)


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
