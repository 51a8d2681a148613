from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmengine.runner import CheckpointLoader, Runner
from safetensors.torch import save_file
from small_regression import config

from cvt_dense.engine import checkpoint_files, load_checkpoints_safely, make_resumable, run_checkpoints
from cvt_dense.engine.checkpoint_files import read_ahead, read_checkpoint
from cvt_dense.errors import CheckpointError


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The files that were read, each time that one was."""
    done: list[str] = []
    read = checkpoint_files.read
    monkeypatch.setattr(checkpoint_files, 'read', lambda path: done.append(Path(path).name) or read(path))
    yield done
    checkpoint_files._read_ahead.clear()


def save(path: Path, value: float) -> Path:
    torch.save(dict(value=value), path)
    return path


def test_a_checkpoint_that_was_read_ahead_is_read_once_and_forgotten(tmp_path: Path, reads: list[str]) -> None:
    path = save(tmp_path / 'a.pth', 1.0)
    assert read_ahead(path) is read_ahead(str(path))
    content = read_ahead(path)
    assert read_checkpoint(str(path)) is content
    assert reads == ['a.pth']
    assert read_checkpoint(str(path)) is not content
    assert reads == ['a.pth', 'a.pth']


def test_one_that_was_written_in_its_place_is_read(tmp_path: Path, reads: list[str]) -> None:
    path = save(tmp_path / 'a.pth', 1.0)
    read_ahead(path)
    save(path, 2.0)
    os.utime(path, ns=(0, 0))
    assert read_checkpoint(str(path))['value'] == 2.0
    assert read_ahead(save(tmp_path / 'b.pth', 3.0))['value'] == 3.0
    assert len(checkpoint_files._read_ahead) == 1  # large ones take gigabytes
    with pytest.raises(CheckpointError):
        read_ahead(tmp_path / 'missing.pth')


def test_a_resume_reads_its_checkpoint_once(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '')
    load_checkpoints_safely()
    cfg = config(tmp_path / 'run', by_epoch=True, workers=0)
    cfg.train_cfg.max_epochs = 1
    make_resumable(cfg)
    Runner.from_cfg(cfg).train()
    cfg = config(tmp_path / 'run', by_epoch=True, workers=0)
    cfg.randomness.seed = None  # so that it is taken from the checkpoint
    make_resumable(cfg)
    start = run_checkpoints.find_start(cfg, 'auto')
    runner = Runner.from_cfg(cfg)
    run_checkpoints.start_from(runner, start)
    runner.train()
    assert runner.seed == 3
    assert reads == ['iter_6.pth']
    assert checkpoint_files._read_ahead == {}


def test_weights_alone_are_read_as_a_checkpoint_of_them(tmp_path: Path) -> None:
    """Which is what hooks expect, that of averaged weights for one."""
    save_file({'linear.bias': torch.ones(1)}, tmp_path / 'a.safetensors')
    assert read_checkpoint(str(tmp_path / 'a.safetensors')) == dict(meta={}, state_dict={'linear.bias': torch.ones(1)})
