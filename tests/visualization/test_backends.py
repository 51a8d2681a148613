"""The backends that are logged to, as far as their packages are installed: a run and its resumption with each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from mmengine.config import Config
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cvt_dense.errors import UserError
from cvt_dense.visualization.backends import (
    AimBackend,
    ClearMLBackend,
    MLflowBackend,
    TensorboardBackend,
    WandbBackend,
)

CONFIG = Config(dict(model=dict(type='X'), steps=[dict(a=1), dict(b=(2, 3))]))
PICTURE = np.zeros((8, 8, 3), np.uint8)


def run(kind: type, work_dir: Path, time: str, steps: range, resumed_at: int | None = None, **settings: Any) -> Any:
    """Log what a run logs, from one start of it."""
    backend = kind(save_dir=str(work_dir / time / 'vis_data'), resumed_at=resumed_at, **settings)
    backend.add_config(CONFIG)
    for step in steps:
        backend.add_scalars({'loss': float(step)}, step)
    backend.add_image('samples/iter_1/a.png', PICTURE, steps[-1])
    backend.close()
    return backend


def test_tensorboard_drops_what_was_logged_after_the_checkpoint_that_is_resumed_from(tmp_path: Path) -> None:
    run(TensorboardBackend, tmp_path, '20260101_000000', range(1, 6))
    run(TensorboardBackend, tmp_path, '20260101_000001', range(4, 8), resumed_at=3)
    (folder,) = {path.parent for path in tmp_path.glob('*/vis_data/events.*')}
    assert [found.step for found in EventAccumulator(str(folder)).Reload().Scalars('loss')] == list(range(1, 8))
    run(TensorboardBackend, tmp_path, '20260101_000002', range(1, 3))
    assert len({path.parent for path in tmp_path.glob('*/vis_data/events.*')}) == 2, 'a run that starts anew'


def test_mlflow_goes_on_with_a_run_in_the_work_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip('mlflow')
    monkeypatch.delenv('MLFLOW_TRACKING_URI', raising=False)
    run(MLflowBackend, tmp_path, '20260101_000000', range(1, 4))
    run(MLflowBackend, tmp_path, '20260101_000001', range(4, 6), resumed_at=3)
    client = mlflow.MlflowClient(f'sqlite:///{tmp_path}/mlflow/mlflow.db')
    (found,) = client.search_runs([client.get_experiment_by_name('cvt_dense').experiment_id])
    assert found.info.status == 'FINISHED'
    assert found.data.params == {'model.type': 'X', 'steps.0.a': '1', 'steps.1.b': '(2, 3)'}
    history = sorted(client.get_metric_history(found.info.run_id, 'loss'), key=lambda entry: entry.step)
    assert [entry.step for entry in history] == [1, 2, 3, 4, 5]
    assert {path.name for path in (tmp_path / 'mlflow').rglob('*.p*')} == {'config.py', 'a.png'}


def test_wandb_without_a_key_logs_offline_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip('wandb')
    for name in ('WANDB_API_KEY', 'WANDB_MODE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('HOME', str(tmp_path / 'nobody'))
    monkeypatch.setenv('NETRC', str(tmp_path / 'nothing'))
    run(WandbBackend, tmp_path, '20260101_000000', range(1, 4))
    assert 'note: wandb has no key and logs offline' in capsys.readouterr().err
    run(WandbBackend, tmp_path, '20260101_000001', range(4, 6), resumed_at=3)
    ids = [path.name.rpartition('-')[2] for path in (tmp_path / 'wandb').glob('offline-run-*')]
    assert len(ids) in (1, 2), 'two starts in one second share a folder'
    assert set(ids) == {json.loads((tmp_path / 'logged_to.json').read_text())['wandb']}


def test_what_keeps_a_log_from_its_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, 'aim', None)
    with pytest.raises(UserError, match=r'^aim cannot be logged to: ImportError: .*; .* leave aim out of --log-to$'):
        run(AimBackend, tmp_path, '20260101_000000', range(1, 3))


def test_clearml_and_aim_are_given_the_log_that_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for the packages, which need a server and another Python."""
    given: list[dict[str, Any]] = []

    class Anything(SimpleNamespace):
        def __getattr__(self, name: str) -> Any:
            return lambda *args, **kwargs: None

        def __setitem__(self, key: str, value: Any) -> None:
            pass

    def start(**settings: Any) -> Anything:
        given.append(settings)
        return Anything(id='one', hash='two', get_logger=Anything)

    for name, content in (('clearml', dict(Task=SimpleNamespace(init=start))), ('aim', dict(Run=start, Image=list))):
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for kind in (ClearMLBackend, AimBackend):
        run(kind, tmp_path, '20260101_000000', range(1, 3))
        run(kind, tmp_path, '20260101_000001', range(3, 5), resumed_at=2)
    assert [entry.get('reuse_last_task_id') for entry in given[:2]] == [False, 'one']
    assert [entry['continue_last_task'] for entry in given[:2]] == [False, 0]
    assert [entry.get('run_hash') for entry in given[2:]] == [None, 'two']
