"""The channels of what reads a backbone's maps: filled in where they do not fit, with a word, and left alone else."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config, ConfigDict
from paths import ROOT
from small_config import load
from toolkit_configs import FAMILIES, Family, adapted, folder

from cvt_dense import CvT
from cvt_dense.backbones.cvt import Maps
from cvt_dense.engine import fill_in_channels
from cvt_dense.engine.config import load_config

RESNET = [256, 512, 1024, 2048]
ALL = (0, 1, 2, 3)


def cvt(*out_indices: int, **settings: Any) -> dict[str, Any]:
    return dict(type='CvT', out_indices=out_indices, **settings)


def fpn(channels: Any = RESNET, **settings: Any) -> dict[str, Any]:
    return dict(type='FPN', in_channels=channels, **settings)


def at(node: Any, path: str) -> Any:
    for part in path.split('.'):
        node = node[int(part) if part.isdigit() else part]
    return node


FCN = dict(type='FCNHead', in_channels=2048, in_index=3)
STANDARD = dict(type='StandardRoIHead', bbox_head=dict(type='Shared2FCBBoxHead', in_channels=2048))
STANDARD['bbox_roi_extractor'] = dict(type='SingleRoIExtractor', out_channels=2048)

#: A model, and what has to be in it afterwards.
FILLED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    'a neck': (dict(backbone=cvt(*ALL), neck=fpn()), {'neck.in_channels': [64, 192, 384, 384]}),
    'another variant': (
        dict(backbone=cvt(*ALL, arch='cvt-w24'), neck=fpn()),
        {'neck.in_channels': [192, 768, 1024, 1024]},
    ),
    'an architecture': (
        dict(backbone=cvt(0, 1, arch=dict(embed_dims=[8, 16], num_heads=[1, 1], depths=[1, 1])), neck=fpn([1, 2])),
        {'neck.in_channels': [8, 16]},
    ),
    'the maps of the default': (
        dict(backbone=dict(type='CvT'), neck=fpn([1, 2, 3])),
        {'neck.in_channels': [64, 192, 384]},
    ),
    'a list of necks': (
        dict(backbone=cvt(*ALL), neck=[fpn(), dict(type='BFP', in_channels=256)]),
        {'neck.0.in_channels': [64, 192, 384, 384], 'neck.1.in_channels': 256},
    ),
    'nothing written': (
        dict(backbone=cvt(1, 2, 3), neck=dict(type='ChannelMapper')),
        {'neck.in_channels': [192, 384, 384]},
    ),
    'None': (dict(backbone=cvt(*ALL), neck=fpn(None)), {'neck.in_channels': [64, 192, 384, 384]}),
    'the wrong order': (
        dict(backbone=cvt(1, 2), neck=dict(type='mmdet.FPN', in_channels=[384, 192])),
        {'neck.in_channels': [192, 384]},
    ),
    'the last map first': (
        dict(backbone=cvt(1, 2, 3), neck=dict(type='YOLOV3Neck', in_channels=[1024, 512, 256])),
        {'neck.in_channels': [384, 384, 192]},
    ),
    'the last map first, in a neck that nobody knows': (
        dict(backbone=cvt(1, 2, 3), neck=dict(type='MyNeck', in_channels=[1024, 512, 256])),
        {'neck.in_channels': [384, 384, 192]},
    ),
    'the last map alone': (
        dict(backbone=cvt(3), neck=dict(type='DilatedEncoder', in_channels=2048)),
        {'neck.in_channels': 384},
    ),
    'a neck that hands maps on': (
        dict(
            backbone=cvt(1, 2, 3),
            neck=dict(type='JPU', in_channels=(512, 1024, 2048)),
            decode_head=dict(type='PSPHead', in_channels=2048, in_index=2),
            auxiliary_head=dict(type='FCNHead', in_channels=1024, in_index=1),
        ),
        {'neck.in_channels': (192, 384, 384), 'decode_head.in_channels': 2048, 'auxiliary_head.in_channels': 384},
    ),
    'a neck that adds maps': (
        dict(
            backbone=cvt(2, 3),
            neck=dict(type='SSDNeck', in_channels=(512, 1024), out_channels=(512, 1024, 512, 256)),
            bbox_head=dict(type='SSDHead', in_channels=(512, 1024, 512, 256)),
        ),
        {
            'neck.in_channels': (384, 384),
            'neck.out_channels': (384, 384, 512, 256),
            'bbox_head.in_channels': (384, 384, 512, 256),
        },
    ),
    'heads of maps by their number': (
        dict(backbone=cvt(*ALL), decode_head=FCN, auxiliary_head=[FCN | dict(in_index=0), FCN | dict(in_index=-3)]),
        {'decode_head.in_channels': 384, 'auxiliary_head.0.in_channels': 64, 'auxiliary_head.1.in_channels': 192},
    ),
    'a head of several maps': (
        dict(backbone=cvt(*ALL), decode_head=dict(type='UPerHead', in_channels=RESNET[:3], in_index=[0, 1, 3])),
        {'decode_head.in_channels': [64, 192, 384]},
    ),
    'a head of several maps, with one number': (
        dict(backbone=cvt(*ALL), decode_head=dict(type='UPerHead', in_channels=2048, in_index=[0, 1, 3])),
        {'decode_head.in_channels': [64, 192, 384]},
    ),
    'a head of the first map besides': (
        dict(backbone=cvt(*ALL), decode_head=dict(type='DepthwiseSeparableASPPHead', in_index=3, c1_in_channels=256)),
        {'decode_head.in_channels': 384, 'decode_head.c1_in_channels': 64},
    ),
    'heads in a row': (
        dict(backbone=cvt(*ALL), decode_head=[FCN | dict(in_index=2), dict(type='OCRHead', in_channels=2048)]),
        {'decode_head.0.in_channels': 384, 'decode_head.1.in_channels': 384},
    ),
    'a head within a head': (
        dict(
            backbone=cvt(*ALL, arch='cvt-w24'),
            decode_head=dict(
                type='IterativeDecodeHead',
                kernel_generate_head=dict(type='FCNHead', in_channels=2048, in_index=1),
                kernel_update_head=[dict(type='KernelUpdateHead', in_channels=512)],
            ),
        ),
        {
            'decode_head.kernel_generate_head.in_channels': 768,
            'decode_head.kernel_update_head.0.in_channels': 512,
        },
    ),
    'a head of all maps': (
        dict(backbone=cvt(*ALL), panoptic_head=dict(type='Mask2FormerHead', in_channels=RESNET)),
        {'panoptic_head.in_channels': [64, 192, 384, 384]},
    ),
    'a detector on one map': (
        dict(backbone=cvt(2), rpn_head=dict(type='RPNHead', in_channels=2048), roi_head=STANDARD),
        {
            'rpn_head.in_channels': 384,
            'roi_head.bbox_roi_extractor.out_channels': 384,
            'roi_head.bbox_head.in_channels': 384,
        },
    ),
    'a detector with a shared head': (
        dict(backbone=cvt(2), rpn_head=dict(type='RPNHead'), roi_head=STANDARD | dict(shared_head=dict(type='X'))),
        {
            'rpn_head.in_channels': 384,
            'roi_head.bbox_roi_extractor.out_channels': 384,
            'roi_head.bbox_head.in_channels': 2048,
        },
    ),
    'a model within a model': (
        dict(type='SoftTeacher', detector=dict(backbone=cvt(*ALL), neck=fpn())),
        {'detector.neck.in_channels': [64, 192, 384, 384]},
    ),
    'classes as types': (
        dict(backbone=dict(type=CvT, out_indices=ALL), neck=fpn()),
        {'neck.in_channels': [64, 192, 384, 384]},
    ),
    'an import path as type': (
        dict(backbone=dict(type='cvt_dense.backbones.cvt.CvT', out_indices=ALL), neck=fpn()),
        {'neck.in_channels': [64, 192, 384, 384]},
    ),
}


@pytest.mark.parametrize('case', FILLED)
def test_channels_are_filled_in_and_each_is_a_line(case: str) -> None:
    settings, expected = FILLED[case]
    before, settings = settings, ConfigDict(copy.deepcopy(settings))
    scope = 'mmseg' if 'decode_head' in str(settings) else 'mmdet'
    lines = fill_in_channels(dict(model=settings, default_scope=scope))
    changed = {}
    for path, value in expected.items():
        assert at(settings, path) == value
        assert type(at(settings, path)) is type(value)
        *parents, key = path.split('.')
        node = at(before, '.'.join(parents))
        if node.get(key) != value:
            changed[f'model.{path}'] = node.get(key)
    assert [line.partition(':')[0] for line in lines] == list(changed)
    for line, given in zip(lines, changed.values()):
        assert '\n' not in line
        assert ', the channels of CvT' in line
        assert line.endswith(f', instead of {given}') == (given is not None)
    again = copy.deepcopy(settings)
    assert fill_in_channels(dict(model=settings, default_scope=scope)) == []
    assert settings == again


#: A model that is not changed, and what is said of it, if anything.
LEFT: dict[str, tuple[dict[str, Any], str]] = {
    'what fits': (dict(backbone=cvt(1, 2), neck=fpn((192, 384))), ''),
    'more maps than there are': (
        dict(backbone=cvt(0, 1, 2), neck=fpn()),
        'model.neck.in_channels is for 4 maps, and CvT returns 3: model.backbone.out_indices=(0, 1, 2, 3) gives 4',
    ),
    'fewer maps than there are': (
        dict(backbone=cvt(*ALL), neck=fpn([256, 512])),
        'model.neck.in_channels is for 2 maps, and CvT returns 4: model.backbone.out_indices=(2, 3) gives 2',
    ),
    'more maps than there could be': (
        dict(backbone=cvt(*ALL), neck=fpn([1, 2, 3, 4, 5])),
        'model.neck.in_channels is for 5 maps, and CvT returns 4: it has 4 at most, so write model.neck.in_channels '
        'for these',
    ),
    'a head of all of more maps': (
        dict(backbone=cvt(1, 2), panoptic_head=dict(type='Mask2FormerHead', in_channels=RESNET)),
        'model.panoptic_head.in_channels is for 4 maps, and CvT returns 2: '
        'model.backbone.out_indices=(0, 1, 2, 3) gives 4',
    ),
    'a head of a map that is not there': (
        dict(backbone=cvt(0, 1, 2), decode_head=FCN),
        'model.decode_head.in_index: 3 is beyond the 3 maps that CvT returns: model.backbone.out_indices=(0, 1, 2, 3)',
    ),
    'a head of another map than the one': (
        dict(backbone=cvt(2), decode_head=FCN),
        'model.decode_head.in_index: 3 is beyond the 1 map that CvT returns: model.decode_head.in_index=0 or '
        'model.backbone.out_indices=(0, 1, 2, 3)',
    ),
    'a head of maps that nothing has': (
        dict(backbone=cvt(*ALL), decode_head=FCN | dict(in_index=7)),
        'model.decode_head.in_index: 7 is beyond the 4 maps that CvT returns: it has 4 at most, counted from 0',
    ),
    'one head on maps of several widths': (
        dict(backbone=cvt(1, 2), bbox_head=dict(type='RetinaHead', in_channels=2048)),
        'model.bbox_head.in_channels: CvT returns maps of 192, 384 channels, and no neck makes them alike: '
        'model.backbone.out_indices=(2,) gives one map',
    ),
    'a neck without channels': (dict(backbone=cvt(2), neck=dict(type='GlobalAveragePooling')), ''),
    'heads behind a neck': (dict(backbone=cvt(2), neck=fpn([384]), bbox_head=dict(in_channels=256)), ''),
    'another backbone': (dict(backbone=dict(type='ResNet', depth=50), neck=fpn([1, 2, 3, 4])), ''),
    'settings that are wrong': (dict(backbone=dict(type='CvT', arch='cvt-14'), neck=fpn()), ''),
    'maps that are wrong': (dict(backbone=cvt(2, 1), neck=fpn()), ''),
    'no model': (dict(type='X'), ''),
}


@pytest.mark.parametrize('case', LEFT)
def test_what_fits_or_cannot_be_told_is_left_alone(case: str) -> None:
    settings, line = LEFT[case]
    after = copy.deepcopy(settings)
    scope = 'mmseg' if 'decode_head' in settings else 'mmdet'
    assert fill_in_channels(dict(model=after, default_scope=scope)) == [line] * bool(line)
    assert after == settings


@pytest.mark.parametrize(
    'case', [case for case, (_, line) in LEFT.items() if '=' in line.partition(': ')[2] or ' or ' in line]
)
def test_what_a_line_says_to_set_cures(case: str) -> None:
    settings, line = LEFT[case]
    for cure in line.rpartition(': ')[2].removesuffix(' gives 4').removesuffix(' gives 2').split(' or '):
        setting, _, value = cure.removesuffix(' gives one map').partition('=')
        cfg = Config(dict(model=copy.deepcopy(settings), default_scope='mmseg' if 'decode' in line else 'mmdet'))
        cfg.merge_from_dict({setting: eval(value)})
        lines = fill_in_channels(cfg)
        assert len(lines) == 1
        assert ', the channels of CvT' in lines[0]


def test_settings_of_a_model_alone_are_taken() -> None:
    settings = dict(type='MaskRCNN', backbone=cvt(*ALL), neck=fpn())
    (line,) = fill_in_channels(settings)
    assert line == "model.neck.in_channels: [64, 192, 384, 384], the channels of CvT's maps, instead of " + str(RESNET)


def test_the_rule_is_the_backbones_own() -> None:
    assert CvT.returned_maps('cvt-21', (1, 3), norm_eval=False) == Maps((192, 384), (8, 32), 4)
    for indices in ((0,), (2,), (0, 2, 3)):
        model = CvT(dict(embed_dims=[8, 16, 32], num_heads=[1, 1, 1], depths=[1, 1, 1]), out_indices=indices)
        maps = CvT.returned_maps(dict(embed_dims=[8, 16, 32], num_heads=[1, 1, 1], depths=[1, 1, 1]), indices)
        assert (model.out_channels, model.out_strides) == (maps.channels, maps.strides)


@pytest.mark.parametrize('family', [family for family in FAMILIES if not family.needs], ids=str)
def test_each_family_of_heads_gets_what_fits(family: Family) -> None:
    """What it gets is right: tests/test_toolkit_configs.py trains on it."""
    if folder(family.toolkit) is None or not (folder(family.toolkit) / family.config).is_file():
        pytest.skip(f'this {family.toolkit} has no {family.config}')
    model = adapted(family)
    assert fill_in_channels(dict(model=model, default_scope=family.toolkit)) == []


CONFIG = """
_base_ = '{base}'
custom_imports = dict(imports=['cvt_dense'])
model = dict(backbone=dict(_delete_=True, type='CvT', out_indices=(0, 1, 2, 3)))
"""


def test_a_config_of_a_toolkit_takes_the_backbone_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = folder('mmdet') / 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    cfg = load(tmp_path, CONFIG.format(base=base))
    assert cfg.model.neck.in_channels == [64, 192, 384, 384]
    expected = "note: model.neck.in_channels: [64, 192, 384, 384], the channels of CvT's maps, instead of "
    assert capsys.readouterr().err == f'{expected}{RESNET}\n'
    cfg.dump(tmp_path / 'kept.py')  # as a run does
    assert Config.fromfile(tmp_path / 'kept.py').model.neck.in_channels == [64, 192, 384, 384]
    load_config(tmp_path / 'kept.py')
    assert capsys.readouterr().err == ''


def test_of_several_processes_the_first_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base = folder('mmdet') / 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    for rank in '01':
        monkeypatch.setenv('RANK', rank)
        cfg = load(tmp_path, CONFIG.format(base=base), launcher='pytorch')
        assert cfg.model.neck.in_channels == [64, 192, 384, 384]
        assert ('note: ' in capsys.readouterr().err) == (rank == '0')


@pytest.mark.parametrize('path', sorted((ROOT / 'configs').rglob('[!_]*.py')), ids=lambda path: path.stem)
def test_our_own_configs_need_no_word(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if '_base_' not in path.parts:
        load_config(path)
        assert capsys.readouterr().err == ''
