from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODEL_WRAPPERS
from small_config import CONFIG, load, message
from torch import nn

from cvt_dense.engine import run_checkpoints
from cvt_dense.errors import UserError

pytestmark = pytest.mark.usefixtures('launch_environment')


class Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.head = nn.Linear(3, 4)


@MODEL_WRAPPERS.register_module()
class MMWrapper(nn.Module):
    """What distributed training puts around a model, as to names."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    for path, what in ((tmp_path / 'a.pth', 'does not exist'), (tmp_path, 'is a folder, not a file')):
        with pytest.raises(UserError, match=f'checkpoint {path} {what}'):
            run_checkpoints.check_checkpoint(str(path))
    (tmp_path / 'a.pth').touch()
    run_checkpoints.check_checkpoint(str(tmp_path / 'a.pth'))
    run_checkpoints.check_checkpoint('https://example.org/a.pth')


def test_a_resume_starts_from_its_file_and_leaves_the_config_as_the_user_has_it(tmp_path: Path) -> None:
    torch.save(dict(meta=dict(seed=7)), tmp_path / 'epoch_3.pth')
    cfg = load(tmp_path, CONFIG + "load_from = 'other.pth'\n")
    start = run_checkpoints.find_start(cfg, str(tmp_path / 'epoch_3.pth'))
    assert start == run_checkpoints.Start(str(tmp_path / 'epoch_3.pth'), resume=True, whole=True)
    assert cfg.load_from == 'other.pth'
    assert not cfg.get('resume')
    assert cfg.model.backbone.init_cfg.checkpoint == 'x'


@pytest.mark.parametrize('load_from', [None, 'epoch_3.pth'])
def test_a_config_may_ask_for_a_resume_itself(tmp_path: Path, load_from: str | None) -> None:
    torch.save(dict(meta={}), tmp_path / 'epoch_3.pth')
    load_from = load_from and str(tmp_path / load_from)
    cfg = load(tmp_path, CONFIG + f'resume = True\nload_from = {load_from!r}\n', work_dir=str(tmp_path))
    start = run_checkpoints.find_start(cfg, None)
    assert start == run_checkpoints.Start(str(tmp_path / 'epoch_3.pth'), resume=True, whole=True)


class Unbuilt:
    """A runner whose model is a config or a module."""

    def __init__(self, model: Any) -> None:
        self.model = model


def test_a_resume_needs_no_pretrained_weights_in_any_wrapper(tmp_path: Path) -> None:
    model = Detector()
    model.backbone.init_cfg = dict(type='Pretrained', checkpoint='not at hand any more')
    torch.save(dict(meta={}, optimizer={}, state_dict=model.state_dict()), tmp_path / 'a.pth')
    runner = Unbuilt(MMWrapper(model))
    run_checkpoints.start_from(runner, run_checkpoints.Start(str(tmp_path / 'a.pth'), resume=True, whole=True))
    assert model.backbone.init_cfg is None
    assert (runner._load_from, runner._resume) == (str(tmp_path / 'a.pth'), True)


@pytest.mark.parametrize('wrapped', [True, False])
def test_weights_to_start_from_must_cover_the_backbone_in_any_wrapper(tmp_path: Path, wrapped: bool) -> None:
    model = Detector()
    path = str(tmp_path / 'a.pth')
    runner = Unbuilt(MMWrapper(model) if wrapped else model)
    torch.save({name: t for name, t in model.state_dict().items() if 'head' not in name}, path)
    run_checkpoints.start_from(runner, run_checkpoints.Start(path))
    torch.save({f'module.{name}': t for name, t in model.state_dict().items()}, path)  # saved by others' training
    run_checkpoints.start_from(runner, run_checkpoints.Start(path))
    torch.save({name: t for name, t in model.state_dict().items() if name != 'backbone.0.bias'}, path)
    with pytest.raises(UserError, match=r'it lacks backbone\.0\.bias$'):
        run_checkpoints.start_from(runner, run_checkpoints.Start(path))


@pytest.mark.parametrize(('given', 'expected'), [(None, 7), (3, 3)])
def test_a_seed_that_was_drawn_is_taken_from_the_checkpoint(tmp_path: Path, given: int | None, expected: int) -> None:
    torch.save(dict(meta=dict(seed=7)), tmp_path / 'epoch_3.pth')
    cfg = load(tmp_path, CONFIG + f'randomness = dict(seed={given}, deterministic=True)\n')
    run_checkpoints.find_start(cfg, str(tmp_path / 'epoch_3.pth'))
    assert cfg.randomness == dict(seed=expected, deterministic=True)


def test_resuming_from_a_missing_file_is_refused(tmp_path: Path) -> None:
    cfg = load(tmp_path)
    with pytest.raises(UserError, match=r'epoch_4.pth does not exist'):
        run_checkpoints.find_start(cfg, str(tmp_path / 'epoch_4.pth'))


def test_resuming_by_itself_takes_the_newest_checkpoint(tmp_path: Path) -> None:
    work_dir = tmp_path / 'run'
    work_dir.mkdir()
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_2.pth'))
    cfg = load(tmp_path, work_dir=str(work_dir))
    with pytest.raises(UserError, match=r'epoch_2.pth does not exist'):
        run_checkpoints.find_start(cfg, 'auto')
    torch.save(dict(state_dict={}), work_dir / 'epoch_2.pth')
    assert run_checkpoints.find_start(cfg, 'auto').path == str(work_dir / 'epoch_2.pth')


def test_in_a_copied_folder_a_resume_takes_the_copy(tmp_path: Path) -> None:
    for folder in ('run', 'copy'):
        (tmp_path / folder).mkdir()
        torch.save(dict(state_dict={}), tmp_path / folder / 'epoch_2.pth')
        (tmp_path / folder / 'last_checkpoint').write_text(str(tmp_path / 'run' / 'epoch_2.pth'))
        cfg = load(tmp_path, work_dir=str(tmp_path / folder))
        assert run_checkpoints.find_start(cfg, 'auto').path == str(tmp_path / folder / 'epoch_2.pth')


@pytest.mark.parametrize('note', [None, '', 'elsewhere/epoch_10.pth'])
def test_resuming_by_itself_finds_its_way_after_a_kill_between_writes(tmp_path: Path, note: str | None) -> None:
    for name in ('epoch_9', 'epoch_10', 'best_coco_bbox_mAP_epoch_12'):
        torch.save(dict(state_dict={}), tmp_path / f'{name}.pth')
    if note is not None:
        (tmp_path / 'last_checkpoint').write_text(note)
    cfg = load(tmp_path, work_dir=str(tmp_path))
    assert run_checkpoints.find_start(cfg, 'auto').path == str(tmp_path / 'epoch_10.pth')


def test_resuming_by_itself_passes_over_what_was_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (500, 1000):
        torch.save(dict(state_dict=dict(weight=torch.zeros(1000))), tmp_path / f'iter_{number}.pth')
    with open(tmp_path / 'iter_1000.pth', 'r+b') as file:
        file.truncate(1000)
    cfg = load(tmp_path, work_dir=str(tmp_path))
    assert run_checkpoints.find_start(cfg, 'auto').path == str(tmp_path / 'iter_500.pth')
    assert f'checkpoint {tmp_path / "iter_1000.pth"} is damaged' in capsys.readouterr().err
    (tmp_path / 'iter_500.pth').write_bytes(b'')
    with pytest.raises(UserError, match=f'no checkpoint in {tmp_path} can be read'):
        run_checkpoints.find_start(cfg, 'auto')


@pytest.mark.parametrize('exists', [True, False])
def test_with_nothing_to_resume_the_run_starts_from_pretrained_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exists: bool
) -> None:
    work_dir = tmp_path / 'run'
    if exists:
        work_dir.mkdir()
    cfg = load(tmp_path, work_dir=str(work_dir))
    assert run_checkpoints.find_start(cfg, 'auto') == run_checkpoints.Start(None)
    assert cfg.model.backbone.init_cfg.checkpoint == 'x'
    assert f'nothing to resume in {work_dir}: starting from scratch' in capsys.readouterr().err


@pytest.mark.parametrize('wrap', [dict, lambda tensors: dict(state_dict=tensors, meta={})])
def test_a_checkpoint_must_cover_the_model(wrap: Callable[[dict], dict], tmp_path: Path) -> None:
    model, path = Detector(), str(tmp_path / 'a.pth')
    tensors = model.state_dict()
    counter = 'backbone.1.num_batches_tracked'
    torch.save(wrap({key: t for key, t in tensors.items() if key != counter}), path)
    run_checkpoints.check_weights(model, path)
    torch.save(wrap(tensors | {'head.weight': torch.zeros(5, 3), 'head.bias': torch.zeros(5)}), path)
    run_checkpoints.check_weights(model, path, whole=False)
    with pytest.raises(UserError, match=r'it has other shapes for head\.weight and 1 more') as error:
        run_checkpoints.check_weights(model, path)
    assert path in message(error)
    torch.save(wrap({key: t for key, t in tensors.items() if key != 'backbone.0.bias'}), path)
    with pytest.raises(UserError, match=r'it lacks backbone\.0\.bias$'):
        run_checkpoints.check_weights(model, path, whole=False)
    run_checkpoints.check_weights(model, 'https://example.org/a.pth')
