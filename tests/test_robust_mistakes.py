"""Mistakes in any part of a config are one line: those that toolkits assert while building, and at the first batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import pytest
from mmengine.config import Config
from paths import ROOT
from robust import Run, run  # noqa: F401  a fixture

from cvt_dense.datasets.shapes_files import make_dataset

UPERNET = ROOT / 'configs/upernet_cvttiny_shapes.py'
MASK_RCNN = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
SMALL = {
    f'{split}_dataloader.{name}': value
    for split in ('train', 'val', 'test')
    for name, value in (('num_workers', 0), ('persistent_workers', False))
} | {'train_dataloader.batch_size': 2}
SEGMENTATION = SMALL | {'model.data_preprocessor.size': (64, 64), 'train_cfg.max_iters': 2, 'train_cfg.val_interval': 2}
DETECTION = SMALL | {'train_cfg.max_epochs': 1, 'train_cfg.val_interval': 1, 'model.backbone.init_cfg': None}

#: What is set, and parts of the line that says so.
SEGMENTATION_MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({'optim_wrapper.type': 'AmpOptimWrapper'}, ('optim_wrapper cannot be built: AssertionError',)),
    (
        {'optim_wrapper.optimizer.type': 'NoSuchOptimizer'},
        ('optim_wrapper cannot be built: ',),
    ),
    ({'model.decode_head.norm_cfg.num_groups': 7}, ('the config cannot be built: ', 'divisible')),
    ({'model.decode_head.pool_scales': '1'}, ('the config cannot be built: TypeError', 'not iterable')),
    ({'model.decode_head.in_index': '[0,1,5]'}, ('training fails at iteration 1 in model.decode_head', 'IndexError')),
    (
        {'model.decode_head.out_channels': 1, 'model.decode_head.threshold': 0.5},
        ('in model.decode_head.loss_decode (CrossEntropyLoss) given 2x1x64x64, 2x64x64: IndexError',),
    ),
    ({'param_scheduler.0.type': 'NoSuchSchedule'}, ('training fails', 'NoSuchSchedule')),
    ({'default_hooks.logger.type': 'NoSuchHook'}, ('the config cannot be built: KeyError', 'NoSuchHook')),
    ({'model.backbone.init_cfg': None, 'model.backbone.frozen_stages': 'True'}, ('frozen_stages',)),
    ({'model.backbone.num_stages': 0}, ('the config cannot be built: TypeError', 'num_stages')),
    (
        {'model.test_cfg.mode': 'slide', 'model.test_cfg.crop_size': (16, 16), 'model.test_cfg.stride': (48, 48)},
        ('fails', 'in model (EncoderDecoder)', 'AssertionError'),
    ),
]
DETECTION_MISTAKES: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({'model.neck.in_channels': '[32,64]'}, ('fails at iteration 1 in model.neck (FPN)', 'assert len(inputs)')),
    ({'model.neck.num_outs': 1}, ('the config cannot be built: AssertionError',)),
    ({'model.neck.out_channels': 32}, ('fails at iteration 1 in model.rpn_head.rpn_conv (Conv2d', '32x')),
    ({'model.rpn_head.in_channels': 32}, ('fails at iteration 1 in model.rpn_head.', '64')),
    ({'model.roi_head.bbox_head.in_channels': 32}, ('fails at iteration 1 in model.roi_head.bbox_head.shared_fcs.0',)),
]


def _name(value: Any) -> str:
    return str(next(iter(value)))


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> None:
    make_dataset(tmp_path / 'data', train=4, val=2, size=64)


def _assert_one_line(outcome: Any, parts: tuple[str, ...]) -> None:
    assert outcome.code == 2, outcome.log[-3000:]
    assert outcome.error.startswith('error: '), outcome.log[-3000:]
    assert 'Traceback' not in outcome.log, outcome.log[-3000:]
    for part in parts:
        assert part in outcome.error, outcome.error


@pytest.mark.parametrize(('settings', 'parts'), SEGMENTATION_MISTAKES, ids=_name)
def test_a_mistake_in_segmentation(run: Run, settings: dict[str, Any], parts: tuple[str, ...]) -> None:  # noqa: F811
    _assert_one_line(run('train', UPERNET, **(SEGMENTATION | settings)), parts)


def test_a_batch_of_validation_that_holds_several_sizes(run: Run, tmp_path: Path) -> None:  # noqa: F811
    """Which segmentors do not pad: one line, with both sizes."""
    for part, kind in (('images', cv2.INTER_AREA), ('annotations', cv2.INTER_NEAREST)):
        file = sorted((tmp_path / 'data' / part / 'validation').iterdir())[0]
        content = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        cv2.imwrite(str(file), cv2.resize(content, (96, 80), interpolation=kind))
    outcome = run('train', UPERNET, **(SEGMENTATION | {'val_dataloader.batch_size': 2}))
    _assert_one_line(outcome, ('in model.data_preprocessor (SegDataPreProcessor) given [3x80x96, 3x64x64]',))


@pytest.mark.parametrize(('settings', 'parts'), DETECTION_MISTAKES, ids=_name)
def test_a_mistake_in_detection(run: Run, settings: dict[str, Any], parts: tuple[str, ...]) -> None:  # noqa: F811
    _assert_one_line(run('train', MASK_RCNN, **(DETECTION | settings)), parts)


@pytest.mark.parametrize(
    ('config', 'settings', 'setting', 'right'),
    [
        (UPERNET, SEGMENTATION, {'model.decode_head.in_channels': '[32,64,96]'}, [32, 64, 128]),
        (UPERNET, SEGMENTATION, {'model.auxiliary_head.in_channels': 96}, 128),
        (MASK_RCNN, DETECTION, {'model.neck.in_channels': '[32,64,96]'}, [32, 64, 128]),
    ],
    ids=['maps', 'map', 'neck'],
)
def test_channels_that_are_not_the_backbones_are_set_right(
    run: Run,  # noqa: F811
    tmp_path: Path,
    config: Path,
    settings: dict[str, Any],
    setting: dict[str, Any],
    right: Any,
) -> None:
    """And the config that the run keeps has what it was run with."""
    outcome = run('train', config, **(settings | setting))
    ((path, given),) = setting.items()
    outcome.assert_works(f"note: {path}: {right}, the channels of CvT's", f'instead of {str(given).replace(",", ", ")}')
    node: Any = Config.fromfile(tmp_path / 'run' / config.name)
    for part in path.split('.'):
        node = node[part]
    assert node == right
