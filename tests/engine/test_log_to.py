from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import VISBACKENDS

from cvt_dense.engine import log_to as module
from cvt_dense.engine.log_to import BACKENDS, continue_logs, leave_out_logs, log_to
from cvt_dense.engine.run_checkpoints import Start
from cvt_dense.errors import UserError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, 'find_spec', lambda name: name)


def types(cfg: Config) -> list[str]:
    return [backend.type for backend in cfg.visualizer.vis_backends]


@pytest.mark.usefixtures('installed')
@pytest.mark.parametrize('settings', [dict(), dict(visualizer=dict(type='Visualizer'))])
def test_it_is_logged_to_beside_what_is_logged_to_anyway(
    settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = Config(dict(work_dir='runs/a', **settings))
    for _ in range(2):  # the second time they are there already
        log_to(cfg, ['tensorboard', 'mlflow', 'mlflow'])
    before = ['LocalVisBackend'] if not settings else []
    assert types(cfg) == [*before, 'TensorboardBackend', 'MLflowBackend']
    told = capsys.readouterr().err
    assert 'tensorboard --logdir runs/a' in told
    assert 'sqlite:///runs/a/mlflow/mlflow.db' in told


@pytest.mark.usefixtures('installed')
def test_a_backend_of_the_config_stays_as_it_is() -> None:
    own = [dict(type='LocalVisBackend'), dict(type='WandbVisBackend', init_kwargs=dict(project='mine'))]
    cfg = Config(dict(work_dir='runs/a', visualizer=dict(type='Visualizer', vis_backends=own)))
    log_to(cfg, ['wandb'])
    assert cfg.visualizer.vis_backends == own


@pytest.mark.usefixtures('installed')
@pytest.mark.parametrize(
    ('hooks', 'expected'),
    [
        (None, dict(type='LoggerHook', log_metric_by_epoch=False)),
        (
            dict(logger=dict(type='LoggerHook', interval=5)),
            dict(type='LoggerHook', interval=5, log_metric_by_epoch=False),
        ),
        (
            dict(logger=dict(type='LoggerHook', log_metric_by_epoch=True)),
            dict(type='LoggerHook', log_metric_by_epoch=True),
        ),
        (dict(logger=dict(type='MyLogger')), dict(type='MyLogger')),
        (dict(logger=None), None),
    ],
)
def test_metrics_go_by_the_iteration_unless_the_config_says_otherwise(
    hooks: dict[str, Any] | None, expected: dict[str, Any] | None
) -> None:
    cfg = Config(dict(work_dir='runs/a') | ({} if hooks is None else dict(default_hooks=hooks)))
    log_to(cfg, ['tensorboard'])
    assert cfg.default_hooks.logger == expected


@pytest.mark.parametrize('name', BACKENDS)
def test_each_has_a_backend_and_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert VISBACKENDS.get(BACKENDS[name][0]).name == name
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=rf'--log-to {name} .* pip install {name}$'):
        log_to(Config(dict(work_dir='runs/a')), [name])


@pytest.mark.usefixtures('installed')
def test_a_resumed_run_goes_on_with_the_logs_and_an_evaluation_leaves_them_alone(tmp_path: Path) -> None:
    torch.save(dict(meta=dict(iter=7), state_dict={}, optimizer={}), tmp_path / 'iter_7.pth')
    cfg = Config(dict(work_dir=str(tmp_path)))
    log_to(cfg, ['tensorboard', 'aim'])
    for start, at in ((Start(None), None), (Start(str(tmp_path / 'iter_7.pth'), resume=True), 7)):
        continue_logs(cfg, start)
        assert [entry.get('resumed_at') for entry in cfg.visualizer.vis_backends] == [None, at, at]
    leave_out_logs(cfg)
    assert types(cfg) == ['LocalVisBackend']
