"""A run that is not as long as its schedule is a line, and what the line says to set cures it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from advice import with_options
from mmengine.config import Config
from paths import ROOT
from toolkit_configs import FAMILIES, folder

from cvt_dense.engine.config import load_config
from cvt_dense.engine.schedule import lines_of_schedule

DETECTION, SEGMENTATION = 'maskrcnn_cvt13_fpn_coco', 'upernet_cvt13_ade20k'
OURS = [path for path in sorted((ROOT / 'configs').rglob('*.py')) if '_base_' not in path.parts]
EPOCH = 1000  # iterations of an epoch in these tests, if nothing else is said


def scheduled(*schedulers: dict[str, Any], **loop: Any) -> Config:
    return Config(dict(param_scheduler=list(schedulers), train_cfg=loop))


@pytest.mark.parametrize('path', OURS, ids=lambda path: f'{path.parent.name}-{path.stem}')
def test_our_own_configs_get_no_word(path: Path) -> None:
    assert lines_of_schedule(load_config(path)) == []


def test_the_toolkits_configs_get_no_word() -> None:
    seen = 0
    for family in FAMILIES:
        if folder(family.toolkit) and (folder(family.toolkit) / family.config).is_file():
            cfg = Config.fromfile(folder(family.toolkit) / family.config, import_custom_modules=False)
            assert lines_of_schedule(cfg) == [], family.config
            seen += 'param_scheduler' in cfg
    assert seen > 50


@pytest.mark.parametrize(
    ('name', 'options', 'epoch', 'said'),
    [
        (SEGMENTATION, dict(max_iters=2000), None, 'nothing is evaluated: train_cfg.val_interval is 16000, and there'),
        (DETECTION, dict(max_epochs=12, val_interval=20), EPOCH, 'train_cfg.val_interval is 20, and there are 12 ep'),
        (SEGMENTATION, dict(max_iters=2000, val_interval=500), None, 'over 160000 iterations, and the run ends after'),
        (
            SEGMENTATION,
            dict(max_iters=320000),
            None,
            'over 160000 iterations, and is at its lowest in the other 160000',
        ),
        (DETECTION, dict(max_epochs=50), EPOCH, 'lowered over 12 epochs, and is at its lowest in the other 38'),
        (DETECTION, dict(max_epochs=6), EPOCH, 'lowered over 12 epochs, and the run ends after 6'),
        (DETECTION, dict(max_epochs=12), 30, 'still warming up in all of the 360 iterations'),
        (DETECTION, dict(max_epochs=12), 150, 'still warming up in the first 1000 of 1800 iterations'),
        (SEGMENTATION, dict(max_iters=2000), None, 'still warming up in the first 1500 of 2000 iterations'),
    ],
)
def test_a_run_that_is_not_as_long_as_its_schedule(
    name: str, options: dict[str, Any], epoch: int | None, said: str
) -> None:
    cfg = load_config(ROOT / f'configs/{name}.py', {f'train_cfg.{key}': value for key, value in options.items()})
    lines = lines_of_schedule(cfg, epoch)
    (line,) = (line for line in lines if said in line)
    assert '\n' not in line
    assert line not in lines_of_schedule(with_options(cfg, line), epoch)
    for line in lines:
        cfg = with_options(cfg, line)
    assert lines_of_schedule(cfg, epoch) == []


def test_what_is_stretched_keeps_its_shape() -> None:
    cfg = load_config(ROOT / f'configs/{DETECTION}.py', {'train_cfg.max_epochs': 48})
    (line,) = lines_of_schedule(cfg, EPOCH)
    assert line.endswith('--cfg-options param_scheduler.1.end=48 param_scheduler.1.milestones=[32,44]')


def test_milestones_that_only_the_end_does_not_fit_stay() -> None:
    decay = dict(type='MultiStepLR', milestones=[28, 34], end=12)
    (line,) = lines_of_schedule(scheduled(decay, max_epochs=36))
    assert line.endswith('--cfg-options param_scheduler.0.end=36')


def test_milestones_of_a_very_short_run_are_within_it() -> None:
    (line,) = lines_of_schedule(scheduled(dict(type='MultiStepLR', milestones=[8, 11], end=12), max_epochs=2))
    assert line.endswith('--cfg-options param_scheduler.0.end=2 param_scheduler.0.milestones=[1]')


def test_a_decay_that_begins_as_the_warm_up_ends_still_does() -> None:
    cfg = load_config(ROOT / f'configs/{SEGMENTATION}.py', {'train_cfg.max_iters': 2000, 'train_cfg.val_interval': 100})
    for line in lines_of_schedule(cfg):
        cfg = with_options(cfg, line)
    warm_up, decay = cfg.param_scheduler
    assert warm_up.end == decay.begin == 200
    assert decay.end == 2000


@pytest.mark.parametrize(
    'cfg',
    [
        Config({}),
        scheduled(max_epochs=12),
        scheduled(dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=500), max_epochs=100),  # then constant
        scheduled(dict(type='MultiStepLR', milestones=[8]), max_epochs=30),  # without an end: it may be meant
        scheduled(dict(type='ExponentialLR', gamma=0.9), max_epochs=30),
        scheduled(dict(type='ReduceOnPlateauLR', monitor='loss'), max_epochs=30),
        scheduled(dict(type='CosineAnnealingLR', T_max=12), max_epochs=12),
        scheduled(dict(type='CosineAnnealingMomentum', T_max=3), dict(type='StepLR', step_size=3), max_epochs=12),
        Config(dict(param_scheduler=dict(generator=dict(type='StepLR', end=1)), train_cfg=dict(max_epochs=9))),
        Config(dict(val_cfg={}, train_cfg=dict(max_iters=10, val_interval=100, dynamic_intervals=[(5, 1)]))),
    ],
)
def test_what_is_as_long_as_it_may_be_gets_no_word(cfg: Config) -> None:
    assert lines_of_schedule(cfg, EPOCH) == []


@pytest.mark.parametrize(
    'scheduler',
    [
        dict(type='MultiStepLR', milestones=[60, 80]),  # which never come
        dict(type='CosineAnnealingLR', T_max=100),
        dict(type='CosineAnnealingLR', T_max=5),
        dict(type='PolyLR', end=50),
        dict(type='OneCycleLR', eta_max=1, total_steps=EPOCH, by_epoch=False),
        dict(type='StepLR', step_size=30, end=100),
        dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=100),  # no warm-up: it lowers the rate
    ],
)
def test_every_kind_of_decay_is_stretched_or_squeezed(scheduler: dict[str, Any]) -> None:
    cfg = scheduled(scheduler, max_epochs=20)
    (line,) = lines_of_schedule(cfg, EPOCH)
    assert 'is lowered over' in line
    assert lines_of_schedule(with_options(cfg, line), EPOCH) == []


def test_one_scheduler_that_is_no_list() -> None:
    cfg = Config(dict(param_scheduler=dict(type='PolyLR', end=5), train_cfg=dict(max_epochs=20)))
    (line,) = lines_of_schedule(cfg, EPOCH)
    assert line.endswith('--cfg-options param_scheduler.end=20')


def test_weights_that_would_not_be_kept() -> None:
    hook = dict(type='CheckpointHook', by_epoch=False, interval=16000, save_last=False)
    cfg = Config(dict(train_cfg=dict(max_iters=2000), default_hooks=dict(checkpoint=hook)))
    (line,) = lines_of_schedule(cfg)
    assert line.startswith('no weights are kept: default_hooks.checkpoint.interval is 16000')
    assert lines_of_schedule(with_options(cfg, line)) == []
    hook['save_last'] = True  # mmengine's default
    assert lines_of_schedule(Config(dict(train_cfg=dict(max_iters=2000), default_hooks=dict(checkpoint=hook)))) == []
