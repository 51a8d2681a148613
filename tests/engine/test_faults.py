"""What is wrong although it trains: each is a line before a run, and what the line says to set cures it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from advice import with_options
from doctor import check_silent_faults
from doctor_machine import NOTE, OK
from mmengine.config import Config
from mmengine.registry import DefaultScope
from paths import ROOT
from robust import Run, run  # noqa: F401  a fixture
from toolkit_configs import FAMILIES, adapted, folder

from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.engine import faults, fill_in_channels, launch, map_use, silent_faults
from cvt_dense.engine.config import load_config
from cvt_dense.engine.faults import random_start_faults
from cvt_dense.engine.map_use import lines_of_maps, use_of_maps
from cvt_dense.engine.pictures import lines_of_pictures
from cvt_dense.registry import type_name

MASK_RCNN, UPERNET = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py', ROOT / 'configs/upernet_cvttiny_shapes.py'


def obey(cfg: Config, line: str) -> Config:
    """The config with the options that a line ends with, parsed as tools do."""
    after = with_options(cfg, line)
    fill_in_channels(after)
    return after


def family(name: str, *out_indices: int, **options: Any) -> Config:
    """A toolkit's config on maps that are given."""
    (found,) = [family for family in FAMILIES if family.name == name and family.toolkit in ('mmdet', 'mmseg')]
    if folder(found.toolkit) is None or not (folder(found.toolkit) / found.config).is_file():
        pytest.skip(f'this {found.toolkit} has no {found.config}')
    options = {name.replace('__', '.'): value for name, value in options.items()}
    settings = replace(found, out_indices=out_indices, options={**found.options, **options})
    return Config(dict(model=adapted(settings), default_scope=found.toolkit))


OURS = [path for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in path.parts]


@pytest.mark.parametrize('path', OURS, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_our_own_configs_get_no_word(path: Path) -> None:
    """And are looked at: what cannot be built would get none either."""
    cfg = load_config(path)
    if type_name(cfg.model.backbone) in ('CvT', 'CMT'):  # some others are there to compare with
        use = use_of_maps(cfg, 'model')
        assert (use.wrong, use.unread, use.is_short) == ([], [], False)
        assert lines_of_pictures(cfg, 'model') == []
        assert random_start_faults(cfg) == []
    else:
        assert path.parent.name == 'comparison'
        assert silent_faults(cfg) == []


OF_STRIDES = 'and the maps that it gets have'


@pytest.mark.parametrize(
    ('cfg', 'said', 'cure'),
    [
        (lambda: family('RTMDet', 0, 1, 2), 'believes in strides 8, 16, 32,', 'model.backbone.out_indices=[1,2,3]'),
        (lambda: family('YOLOX', 0, 1, 2), f'8, 16, 32, {OF_STRIDES} 4, 8, 16', 'model.backbone.out_indices=[1,2,3]'),
        (lambda: family('YOLOv3', 0, 1, 2), f'32, 16, 8, {OF_STRIDES} 16, 8, 4', 'model.backbone.out_indices=[1,2,3]'),
        (lambda: family('YOLOF', 2), f'32, {OF_STRIDES} 16', 'model.backbone.out_indices=[3]'),
        (lambda: family('SOLO', 1, 2, 3, neck__in_channels=[1, 2, 3]), 'mask_head', 'out_indices=[0,1,2]'),
        (lambda: family('Faster R-CNN C4', 3), 'rpn_head believes in strides 16, ', 'out_indices=[2]'),
        (
            lambda: family('Mask R-CNN', 1, 2, 3, neck__in_channels=[1, 2, 3]),
            '(and 2 more such)',
            'model.backbone.out_indices=[0,1,2]',
        ),
        (
            lambda: family('RetinaNet', 1, 2, 3, neck__in_channels=[1, 2, 3]),
            'model.bbox_head believes in strides 8, 16, 32, 64, 128, ',
            'model.neck.start_level=0',
        ),
        (
            lambda: family('FCOS', 0, 1, 2, 3, neck__start_level=0),
            'model.bbox_head believes',
            'model.backbone.out_indices=[1,2,3] model.neck.in_channels=[48,96,96]',
        ),
        (
            lambda: family('Sparse R-CNN', 2, 3, neck__in_channels=[1, 2]),
            'bbox_roi_extractor.0 believes in strides 4, 8, 16, 32, ',
            'model.backbone.out_indices=[0,1]',
        ),
        (
            lambda: family('Faster R-CNN', 0, 1, 2, 3, rpn_head__anchor_generator__strides=[4, 8, 16, 32, 128]),
            f'4, 8, 16, 32, 128, {OF_STRIDES} 4, 8, 16, 32, 64:',
            'model.rpn_head.anchor_generator.strides=[4,8,16,32,64]',
        ),
        (
            lambda: family('YOLOX', 0, 1, 2, 3, neck__in_channels=[1, 2, 3, 4], bbox_head__strides=[8, 16, 32, 64]),
            'believes in strides 8, 16, 32, 64',
            'model.bbox_head.strides=[4,8,16,32]',
        ),
    ],
)
def test_heads_that_believe_in_other_strides_than_their_maps_have(cfg: Any, said: str, cure: str) -> None:
    cfg = cfg()
    line = silent_faults(cfg)[0]
    assert said in line
    assert line.endswith(cure)
    assert '\n' not in line
    assert silent_faults(obey(cfg, line)) == []
    assert use_of_maps(obey(cfg, line), 'model').wrong == []


@pytest.mark.parametrize(
    ('cfg', 'said', 'cure'),
    [
        (
            lambda: family('RetinaNet', 0, 1, 2, 3),
            'nothing reads the map of model.backbone at stride 4: ',
            'model.backbone.out_indices=[1,2,3] model.neck.in_channels=[48,96,96] model.neck.start_level=0',
        ),
        (
            lambda: family('DyHead', 0, 1, 2, 3),  # whose operators have no form without memory
            'at stride 4: ',
            'model.backbone.out_indices=[1,2,3] model.neck.0.in_channels=[48,96,96] model.neck.0.start_level=0',
        ),
        (lambda: family('CenterNet', 0, 1, 2, 3), 'at strides 4, 8, 16: ', 'model.backbone.out_indices=[3]'),
        (
            lambda: family('FCN', 0, 1, 2, 3),
            'nothing reads the maps of model.backbone at strides 4, 8: ',
            'model.backbone.out_indices=[2,3] model.decode_head.in_index=1 model.auxiliary_head.in_index=0',
        ),
        (
            lambda: family('DeepLabV3+', 0, 1, 2, 3),
            'at stride 8: ',
            'out_indices=[0,2,3] model.decode_head.in_index=2 ',
        ),
        (lambda: family('EncNet', 0, 1, 2, 3), 'at stride 4: ', 'model.decode_head.in_index=[0,1,2] '),
        (lambda: family('OCRNet', 0, 1, 2, 3), 'at strides 4, 8, 16: ', 'decode_head.0.in_index=0 model.decode_head.1'),
        (lambda: family('K-Net, FCN', 0, 1, 2, 3), 'at strides 4, 8: ', 'decode_head.kernel_generate_head.in_index=1'),
        (
            lambda: family('Segmenter', 1, 2, decode_head__in_index=1),
            'at stride 8: ',
            'model.backbone.out_indices=[2] model.decode_head.in_index=0',
        ),
    ],
)
def test_maps_that_nothing_reads(cfg: Any, said: str, cure: str) -> None:
    cfg = cfg()
    (line,) = silent_faults(cfg)
    assert said in line
    assert cure in line
    assert silent_faults(obey(cfg, line)) == []
    assert use_of_maps(obey(cfg, line), 'model').unread == []


def test_maps_whose_sizes_are_read_get_no_word() -> None:
    """NAS-FCOS resizes to the sizes of three maps by their places among four, and computes with three."""
    cfg = family('NAS-FCOS', 0, 1, 2, 3)
    assert use_of_maps(cfg, 'model').unread == [0]
    assert lines_of_maps(cfg, 'model') == []


def test_a_model_with_a_part_that_is_not_known_gets_no_word_of_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = family('FCN', 0, 1, 2, 3)
    assert use_of_maps(cfg, 'model').unread == [0, 1]
    monkeypatch.setattr(map_use, '_HEADS', ('decode_head',))
    assert use_of_maps(cfg, 'model').unread == []


def test_a_head_that_names_a_map_is_not_told_to_do_without() -> None:
    """The second map is read and the first is not: of the cures that are tried, some would take the map away."""
    several = dict(auxiliary_head__in_index=[1], auxiliary_head__input_transform='resize_concat')
    cfg = family('FCN', 0, 1, 2, 3, decode_head__in_index=1, **several)
    (line,) = silent_faults(cfg)
    assert 'model.backbone.out_indices=[1] model.decode_head.in_index=0 model.auxiliary_head.in_index=[0]' in line
    assert silent_faults(obey(cfg, line)) == []


RGB = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
NONE = dict(mean=None, std=None, bgr_to_rgb=False)
NORMALIZE = dict(type='Normalize', mean=RGB['mean'], std=RGB['std'], to_rgb=True)
PUT = 'model.data_preprocessor.'


def pictures(config: Path = MASK_RCNN, steps: Any = (), **settings: Any) -> Config:
    cfg = load_config(config)
    cfg.model.data_preprocessor.update(settings)
    cfg.train_dataloader.dataset.pipeline += [copy.deepcopy(step) for step in steps]
    return cfg


@pytest.mark.parametrize(
    ('settings', 'said', 'cure'),
    [
        (dict(bgr_to_rgb=False), 'as BGR with mean [123.7, 116.3, 103.5] and std', f'{PUT}bgr_to_rgb=True'),
        (dict(mean=[0, 0, 0], std=[255, 255, 255]), 'RGB with mean [0.0, 0.0, 0.0] and std [255.0,', f'{PUT}mean=['),
        (dict(mean=None, std=None), 'RGB with mean [0.0, 0.0, 0.0] and std [1.0, 1.0, 1.0]', f'{PUT}std=[58'),
        (NONE, 'as BGR with mean [0.0, 0.0, 0.0] and std [1.0, 1.0, 1.0]', f'{PUT}bgr_to_rgb=True'),
        # RTMDet's, Caffe's, and that of vision transformers.
        (dict(mean=RGB['mean'][::-1], std=RGB['std'][::-1], bgr_to_rgb=False), 'as BGR with mean [103.5,', 'rgb=True'),
        (dict(mean=RGB['mean'][::-1], std=[1.0, 1.0, 1.0], bgr_to_rgb=False), 'std [1.0, 1.0, 1.0]', 'rgb=True'),
        (dict(mean=[127.5] * 3, std=[127.5] * 3), 'RGB with mean [127.5, 127.5, 127.5]', f'{PUT}mean=['),
        (dict(steps=[NORMALIZE]), 'and std [', f'{PUT}mean=None {PUT}std=None {PUT}bgr_to_rgb=False'),
        (dict(NONE, steps=[NORMALIZE], bgr_to_rgb=True), 'as BGR with', f'{PUT}bgr_to_rgb=False'),
    ],
)
@pytest.mark.parametrize('config', [MASK_RCNN, UPERNET], ids=['detection', 'segmentation'])
def test_pictures_unlike_those_that_weights_were_trained_on(
    config: Path, settings: dict[str, Any], said: str, cure: str
) -> None:
    cfg = pictures(config, **settings)
    (line,) = silent_faults(cfg) if cfg.model.backbone.get('init_cfg') else silent_faults(with_weights(cfg))
    assert line.startswith('pictures reach model.backbone as ')
    assert said in line
    assert cure in line
    assert silent_faults(obey(with_weights(cfg), line)) == []


def with_weights(cfg: Config) -> Config:
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='cvt-tiny-shapes')
    return cfg


@pytest.mark.parametrize(
    'settings',
    [
        RGB,
        dict(NONE, steps=[NORMALIZE]),
        dict(bgr_to_rgb=False, rgb_to_bgr=True),  # the same exchange
        dict(mean=[123.68, 116.78, 103.94], std=[58.4, 57.12, 57.38]),
    ],
)
def test_pictures_that_are_right_get_no_word(settings: dict[str, Any]) -> None:
    assert silent_faults(pictures(**settings)) == []


def test_a_normalization_in_the_pipelines_that_is_wrong() -> None:
    cfg = pictures(**NONE, steps=[NORMALIZE | dict(mean=[0, 0, 0])])
    (line,) = silent_faults(cfg)
    assert 'leave Normalize out of the pipelines, with --cfg-options model.data_preprocessor.mean=' in line
    after = obey(cfg, line)
    after.train_dataloader.dataset.pipeline.pop()
    assert silent_faults(after) == []


def test_a_missing_preprocessor() -> None:
    cfg = pictures()
    cfg.model.data_preprocessor = None
    (line,) = silent_faults(cfg)
    cure = line.rpartition('ImageNet: model.data_preprocessor=')[2]
    cfg.model.data_preprocessor = eval(cure)
    assert silent_faults(cfg) == []


def test_weights_that_are_not_pre_trained_take_any_pictures() -> None:
    cfg = pictures(bgr_to_rgb=False)
    cfg.model.backbone.init_cfg = None
    assert silent_faults(cfg) == []
    cfg.load_from = 'a.pth'
    (line,) = silent_faults(cfg)
    assert 'load_from, if it goes back to published weights, learned from RGB' in line
    assert silent_faults(obey(cfg, line)) == []


def test_a_model_within_a_model_is_looked_at() -> None:
    cfg = load_config(MASK_RCNN)
    inner = cfg.model.to_dict()
    inner['backbone']['out_indices'] = [1, 2, 3]
    preprocessor = dict(type='MultiBranchDataPreprocessor', data_preprocessor=inner.pop('data_preprocessor'))
    preprocessor['data_preprocessor']['bgr_to_rgb'] = False
    cfg.model = dict(type='SoftTeacher', detector=inner, data_preprocessor=preprocessor)
    fill_in_channels(cfg)
    strides, colours = silent_faults(cfg)
    assert strides.endswith('--cfg-options model.detector.backbone.out_indices=[0,1,2]')
    assert colours.endswith('--cfg-options model.data_preprocessor.data_preprocessor.bgr_to_rgb=True')
    assert silent_faults(obey(obey(cfg, strides), colours)) == []


def test_a_config_of_classes_that_names_no_toolkit_is_looked_at() -> None:
    cfg = Config.fromfile(ROOT / 'configs/new_style/maskrcnn_cvttiny_fpn_shapes.py')
    cfg.pop('default_scope', None)
    cfg.model.backbone.out_indices = (1, 2, 3)
    fill_in_channels(cfg)
    with DefaultScope.overwrite_default_scope('mmseg'):  # of what was done before in this process
        (line,) = silent_faults(cfg)
        assert line.endswith('--cfg-options model.backbone.out_indices=[0,1,2]')
        assert silent_faults(obey(cfg, line)) == []


def test_what_cannot_be_looked_at_is_left_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(MASK_RCNN)
    before = cfg.to_dict()
    cfg.model.roi_head.type = 'NoSuchHead'
    assert silent_faults(cfg) == []
    cfg = load_config(MASK_RCNN, {'model.backbone.out_indices': [1, 2, 3]})
    monkeypatch.setattr(faults, 'lines_of_maps', lambda cfg, path: 1 / 0)
    assert silent_faults(cfg) == []
    assert load_config(MASK_RCNN).to_dict() == before


def test_the_doctor_says_it() -> None:
    (result,) = check_silent_faults(load_config(MASK_RCNN))
    assert result.status == OK
    (result,) = check_silent_faults(load_config(MASK_RCNN, {'model.backbone.out_indices': [1, 2, 3]}))
    assert result.status == NOTE
    assert result.text.endswith('--cfg-options model.backbone.out_indices=[0,1,2]')


def test_a_run_says_it_in_its_log_and_goes_on(
    run: Run,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_dataset(tmp_path / 'data', train=2, val=2, size=64)
    weights = dict(_delete_=True, type='Pretrained', checkpoint='cvt-tiny-shapes')
    config = tmp_path / 'config.py'
    config.write_text(f"_base_ = '{UPERNET}'\nmodel = dict(backbone=dict(init_cfg={weights}))\n")
    quick = {
        'model.data_preprocessor.size': (64, 64),
        'model.data_preprocessor.bgr_to_rgb': False,
        'train_cfg.max_iters': 1,
        'train_cfg.val_interval': 2,
        'train_dataloader.batch_size': 2,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    }
    outcome = run('train', config, **quick)
    outcome.assert_works()
    said = 'pictures reach model.backbone as BGR'
    assert outcome.log.count(said) == 1
    assert sum(log.read_text().count(said) for log in (tmp_path / 'run').rglob('*.log')) == 1
    assert said not in run('train', config, **quick | {'model.data_preprocessor.bgr_to_rgb': True}).log
    fresh = quick | {'model.backbone.init_cfg': None, 'model.backbone.norm_eval': True}
    assert run('train', config, **fresh).log.count('its BatchNorms keep mean 0 and variance 1 for ever') == 1
    monkeypatch.setattr(launch, 'is_first', lambda launcher: False)  # another process
    assert said not in run('train', config, **quick).log
