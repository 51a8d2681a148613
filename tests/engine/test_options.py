from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from small_config import CONFIG

from cvt_dense.engine import options
from cvt_dense.errors import UserError
from cvt_dense.registry import each_evaluator

pytestmark = pytest.mark.usefixtures('launch_environment')


def test_overrides_of_the_command_line_are_understood(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    options.add_common_arguments(parser)
    (tmp_path / 'config.py').write_text(CONFIG)
    overrides = ['model.backbone.init_cfg=None', 'model.backbone.out_indices=[0,1]', 'optim_wrapper.optimizer.lr=1e-3']
    args = parser.parse_args([str(tmp_path / 'config.py'), '--local-rank', '3', '--cfg-options', *overrides])
    cfg = options.load_config_of(args)
    assert cfg.model.backbone.init_cfg is None
    assert cfg.model.backbone.out_indices == [0, 1]
    assert cfg.optim_wrapper.optimizer.lr == 1e-3


def test_the_launchers_rank_counts_more_than_the_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'config.py').write_text(CONFIG)
    given = dict(config=str(tmp_path / 'config.py'), cfg_options=None, work_dir=None, launcher='none', local_rank=3)
    options.load_config_of(argparse.Namespace(**given))
    assert os.environ['LOCAL_RANK'] == '0'
    monkeypatch.delenv('LOCAL_RANK')
    options.load_config_of(argparse.Namespace(**given))
    assert os.environ['LOCAL_RANK'] == '3'


@pytest.mark.parametrize(
    ('gpu', 'bf16', 'expected'),
    [
        (False, False, dict(type='BFloat16OptimWrapper')),
        (True, True, dict(type='BFloat16OptimWrapper')),
        (True, False, dict(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')),
    ],
)
@pytest.mark.parametrize('wrapper', [dict(), dict(type='OptimWrapper'), dict(type='AmpOptimWrapper', dtype='float16')])
def test_amp_takes_the_precision_that_there_is(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, bf16: bool, expected: dict[str, Any], wrapper: dict[str, str]
) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: gpu)
    monkeypatch.setattr(torch.cuda, 'is_bf16_supported', lambda including_emulation: bf16)
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(type='AdamW'), **wrapper), custom_hooks=[dict(type='EMAHook')]))
    options.enable_amp(cfg)
    assert cfg.optim_wrapper == dict(optimizer=dict(type='AdamW'), **expected)
    assert [hook.type for hook in cfg.custom_hooks] == ['EMAHook', 'Float32OperatorsHook']


def test_amp_with_a_special_wrapper_is_refused() -> None:
    with pytest.raises(UserError, match='not with the DeepSpeedOptimWrapper of the config'):
        options.enable_amp(Config(dict(optim_wrapper=dict(type='DeepSpeedOptimWrapper'))))


def test_the_rate_is_scaled_if_the_config_says_for_which_batch_size_it_is() -> None:
    cfg = Config(dict(auto_scale_lr=dict(base_batch_size=16, enable=False)))
    options.enable_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr == dict(base_batch_size=16, enable=True)


@pytest.mark.parametrize('settings', [dict(), dict(auto_scale_lr=dict(enable=False)), dict(auto_scale_lr=None)])
def test_without_a_batch_size_the_rate_cannot_be_scaled(settings: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r'--auto-scale-lr needs auto_scale_lr.base_batch_size'):
        options.enable_auto_scale_lr(Config(settings))


def evaluation(scope: str, evaluator: Any) -> Config:
    hooks = dict(visualization=dict(type='VisualizationHook'))
    visualizer = dict(type='LocalVisualizer')
    return Config(
        dict(default_scope=scope, default_hooks=hooks, visualizer=visualizer, test_evaluator=evaluator, val_evaluator=1)
    )


@pytest.mark.parametrize('hooks', [None, [dict(type='EMAHook')]])
def test_pictures_go_to_the_folder(hooks: list[dict[str, Any]] | None) -> None:
    cfg = Config(dict(default_scope='mmseg', custom_hooks=hooks))
    options.draw_predictions(cfg, 'pictures')
    assert cfg.custom_hooks == [*(hooks or []), dict(type='PicturesHook', folder='pictures')]


@pytest.mark.parametrize('evaluator', [dict(type='CocoMetric'), [dict(type='CocoMetric')]])
@pytest.mark.parametrize('out', ['a.pkl', 'a.pickle'])
def test_predictions_of_detection_are_dumped_beside_the_metrics(evaluator: Any, out: str) -> None:
    cfg = evaluation('mmdet', evaluator)
    options.dump_predictions(cfg, out)
    assert cfg.test_evaluator == [dict(type='CocoMetric'), dict(type='DumpDetResults', out_file_path=out)]


def test_the_toolkit_can_dump_to_every_name_that_is_let_through(tmp_path: Path) -> None:
    from mmdet.registry import METRICS

    for out in ('a.pkl', 'a.pickle'):
        cfg = evaluation('mmdet', dict(type='CocoMetric'))
        options.dump_predictions(cfg, str(tmp_path / out))
        METRICS.build(dict(cfg.test_evaluator[1], _scope_='mmdet'))


@pytest.mark.parametrize(
    'evaluator',
    [
        dict(type='IoUMetric'),
        [dict(type='IoUMetric')],
        dict(type='Evaluator', metrics=dict(type='IoUMetric')),
        dict(type='Evaluator', metrics=[dict(type='IoUMetric')]),
    ],
)
def test_label_maps_of_segmentation_are_kept_in_a_folder(evaluator: Any) -> None:
    cfg = evaluation('mmseg', evaluator)
    options.dump_predictions(cfg, 'maps')
    assert each_evaluator(cfg.test_evaluator) == [dict(type='IoUMetric', output_dir='maps', keep_results=True)]


@pytest.mark.parametrize(('scope', 'out'), [('mmdet', 'folder'), ('mmdet', 'a.json'), ('mmseg', 'a.pkl')])
def test_predictions_of_the_wrong_kind_are_refused(scope: str, out: str) -> None:
    with pytest.raises(UserError, match=f'--out .+ got {out}'):
        options.dump_predictions(evaluation(scope, dict()), out)
