from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader, Runner
from mmengine.runner.checkpoint import _load_checkpoint
from torch import nn

from cvt_dense.checkpoints.files import read
from cvt_dense.checkpoints.unpickling import mmengine_types
from cvt_dense.engine.checkpoint_files import load_checkpoints_safely
from cvt_dense.errors import CheckpointError


class Model(BaseModel):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor, mode: str) -> dict[str, torch.Tensor]:
        return dict(loss=self.linear(x).square().sum())


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a Runner of mmengine writes after some iterations."""
    folder = tmp_path_factory.mktemp('run')
    Runner(
        Model(),
        str(folder),
        train_dataloader=dict(
            dataset=[dict(x=torch.ones(2))] * 4,
            batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.1)),
        param_scheduler=dict(type='LinearLR', start_factor=0.1, end=2),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        default_scope='mmengine',
        experiment_name='test_unpickling',
        log_level='ERROR',
    ).train()
    return folder / 'epoch_2.pth'


def equal(ours: Any, theirs: Any) -> bool:
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(equal(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    if isinstance(ours, (torch.Tensor, np.ndarray)):
        return ours.dtype == theirs.dtype and bool((ours == theirs).all())
    if isinstance(ours, HistoryBuffer):
        return equal(vars(ours), vars(theirs))
    return ours == theirs


def test_what_mmengine_writes_is_read_as_it_was_written(checkpoint: Path) -> None:
    written = torch.load(checkpoint, weights_only=False)
    assert any(isinstance(value, HistoryBuffer) for value in written['message_hub']['log_scalars'].values())
    with mmengine_types():
        content = torch.load(checkpoint, weights_only=True)
    assert equal(content, written)
    assert content['message_hub']['log_scalars']['train/loss'].mean() > 0
    assert content['optimizer']['state']


def test_outside_nothing_is_let_through(checkpoint: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    with mmengine_types():
        assert set(torch.serialization.get_safe_globals()) > before
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint, weights_only=True)


def test_may_be_entered_a_second_time_inside_itself(checkpoint: Path) -> None:
    with mmengine_types():
        with mmengine_types():
            pass
        torch.load(checkpoint, weights_only=True)


@pytest.fixture
def safe_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine's loader as the tools have it; as it was afterwards."""
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')
    load_checkpoints_safely()


@pytest.mark.usefixtures('safe_loader')
def test_mmengines_own_loader_reads_it_again_and_again(checkpoint: Path) -> None:
    first, second = (_load_checkpoint(str(checkpoint), map_location='cpu') for _ in range(2))
    assert equal(first, second)
    assert 'optimizer' in first


@pytest.mark.parametrize(
    'value',
    [np.float64(0.5), np.float32(0.5), np.int64(3), np.int32(3), np.uint32(3), np.bool_(True), np.arange(3.0)],
    ids=lambda value: str(value.dtype),
)
@pytest.mark.parametrize('core', ['core', '_core'])
def test_numpy_values_are_read_under_old_and_new_names(tmp_path: Path, value: Any, core: str) -> None:
    torch.save({'value': value}, tmp_path / 'a.pth', _use_new_zipfile_serialization=False)
    raw = (tmp_path / 'a.pth').read_bytes()
    raw = raw.replace(b'numpy._core.multiarray', b'numpy.core.multiarray') if core == 'core' else raw
    (tmp_path / 'a.pth').write_bytes(raw)
    with mmengine_types():
        assert equal(torch.load(tmp_path / 'a.pth', weights_only=True)['value'], value)


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, function: Callable, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple[object, ...]]:
        return self.call


EVIL_LOOK_UPS = [
    (np.ndarray, 'tofile'),
    (torch.Tensor, '__init__'),
    (HistoryBuffer, '__init__'),
    (HistoryBuffer, '__dict__'),
    (HistoryBuffer, '_statistics_methods'),
]


@pytest.mark.parametrize('zipped', [True, False])
def test_a_call_of_the_system_is_refused_and_not_made(tmp_path: Path, zipped: bool) -> None:
    content = {'a': Call(os.system, f'touch {tmp_path / "created"}')}
    torch.save(content, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with mmengine_types(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / 'a.pth', weights_only=True)
    assert not (tmp_path / 'created').exists()


@pytest.mark.parametrize(('owner', 'name'), EVIL_LOOK_UPS)
def test_getattr_reaches_nothing_but_a_historys_statistics(tmp_path: Path, owner: type, name: str) -> None:
    torch.save({'a': Call(getattr, owner, name)}, tmp_path / 'a.pth')
    with mmengine_types(), pytest.raises((pickle.UnpicklingError, ValueError), match='refused to look up'):
        torch.load(tmp_path / 'a.pth', weights_only=True)


@pytest.mark.parametrize(('owner', 'name'), EVIL_LOOK_UPS)
def test_a_refused_look_up_makes_a_checkpoint_error(tmp_path: Path, owner: type, name: str) -> None:
    torch.save({'a': Call(getattr, owner, name)}, tmp_path / 'a.pth')
    with mmengine_types(), pytest.raises(CheckpointError, match='refused to look up'):
        read(tmp_path / 'a.pth')


@pytest.mark.parametrize(('owner', 'name'), EVIL_LOOK_UPS)
@pytest.mark.usefixtures('safe_loader')
def test_getattr_stays_refused_where_mmengine_would_let_it_through(tmp_path: Path, owner: type, name: str) -> None:
    torch.save({'a': Call(getattr, owner, name)}, tmp_path / 'a.pth')
    with pytest.raises(CheckpointError, match='refused to look up'):
        _load_checkpoint(str(tmp_path / 'a.pth'))
