"""Whoever is told to stop saves what it has, says so in one line, and leaves nothing half written."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import benchmark
import convert_checkpoint
import cv2
import export
import make_shapes
import numpy as np
import pytest
import torch
import validate_imagenet
import visualize
from golden import TINY
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from paths import ROOT
from PIL import Image
from timm import create_model
from tool_processes import ToolProcess
from torch import nn

from cvt_dense import CvTTrunk, cli
from cvt_dense.apis import export as exporting
from cvt_dense.datasets import shapes_files

DETECTION = ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
Stop = Callable[..., tuple[int, list[str]]]


def wait_for(is_so: Callable[[], Any], process: ToolProcess, log: Path, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def last_lines(log: Path) -> list[str]:
    """The lines that a tool wrote, without progress bars."""
    lines = re.split(r'[\r\n]', log.read_text())
    return [line.strip() for line in lines if line.strip() and '%|' not in line and 'it/s' not in line]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained detector as mmengine saves it, with random weights."""
    cfg = Config.fromfile(DETECTION)
    cfg.model.backbone.init_cfg = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(cfg.model)
    path = tmp_path_factory.mktemp('checkpoint') / 'detector.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return path


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (48, 64, 3), dtype=np.uint8)


def predict(checkpoint: Path, folder: Path, *inputs: object) -> tuple[ToolProcess, Path]:
    log = folder / 'log.txt'
    arguments = [ROOT / 'tools/predict.py', DETECTION, checkpoint, *inputs, '--out', folder / 'out', '--device', 'cpu']
    return ToolProcess(arguments, log), log


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_prediction_on_images_keeps_what_it_has(number: signal.Signals, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / 'in').mkdir()
    for i in range(200):
        cv2.imwrite(str(tmp_path / f'in/{i:03}.png'), picture(i))
    process, log = predict(checkpoint, tmp_path, tmp_path / 'in')
    pictures = tmp_path / 'out/pictures'
    wait_for(lambda: len(list(pictures.glob('*.jpg'))) > 2, process, log)
    process.send_signal(number)
    assert process.wait(60) == 128 + number, log.read_text()
    written = sorted(pictures.iterdir())
    assert 2 < len(written) < 200
    assert all(cv2.imread(str(path)) is not None for path in written)
    images = json.loads((tmp_path / 'out/images.json').read_text())['images']
    assert [tmp_path / 'out' / entry['picture'] for entry in images] == written
    predictions = json.loads((tmp_path / 'out/predictions.json').read_text())
    assert {entry['image_id'] for entry in predictions} <= {entry['id'] for entry in images}
    assert last_lines(log)[-1] == (
        f'stopped by {number.name} after {len(written)} of 200 inputs; pictures and JSON files of these are in '
        f'{tmp_path / "out"}'
    )


def test_a_video_that_prediction_is_stopped_in_plays_up_to_there(checkpoint: Path, tmp_path: Path) -> None:
    film = tmp_path / 'film.avi'
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    for i in range(300):
        writer.write(picture(i))
    writer.release()
    process, log = predict(checkpoint, tmp_path, film)
    wait_for(lambda: re.search(r'\| [3-9]/300', log.read_text()), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM, log.read_text()
    entries = json.loads((tmp_path / 'out/images.json').read_text())['images']
    capture = cv2.VideoCapture(str(tmp_path / 'out/pictures/film.mp4'))
    frames = 0
    while capture.read()[0]:
        frames += 1
    assert frames == len(entries) > 2
    assert [entry['frame'] for entry in entries] == list(range(frames))
    assert f'after 0 of 1 inputs and {frames} frames of {film}; ' in last_lines(log)[-1]


def test_the_demo_goes_on_from_what_it_saved(tmp_path: Path) -> None:
    out, log = tmp_path / 'demo', tmp_path / 'log.txt'
    sizes = ['--train', 192, '--val', 2, '--epochs', 2, '--pictures', 1]
    arguments = [ROOT / 'tools/demo.py', '--out', out, *sizes]
    process = ToolProcess(arguments, log)
    wait_for(lambda: 'Epoch(train)' in log.read_text(), process, log)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 128 + signal.SIGTERM, log.read_text()
    last = last_lines(log)[-1]
    match = re.fullmatch(r'stopped by SIGTERM after iteration (\d+) of \d+; the same command goes on from there', last)
    assert match, log.read_text()
    # Of an epoch that was over just then there is an ordinary checkpoint instead.
    saved = Path((out / 'last_checkpoint').read_text())
    assert saved.exists()
    assert torch.load(saved, weights_only=False)['meta']['iter'] == int(match[1])
    assert not (out / 'predictions.png').exists()
    again = ToolProcess(arguments, log)
    assert again.wait(600) == 0, log.read_text()
    assert re.search(rf'resumed epoch: \d, iter: {match[1]}\b', log.read_text()), log.read_text()
    assert (out / 'predictions.png').exists()


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Stop:
    """Runs a tool that is sent a signal when it calls a function: its exit code, and its lines on stderr."""

    def run(tool: ModuleType, where: ModuleType, name: str, *arguments: object, call: int = 1) -> tuple[int, list[str]]:
        function, calls = getattr(where, name), iter(range(1, 1000))

        def signalled(*args: Any, **kwargs: Any) -> Any:
            outcome = function(*args, **kwargs)
            if next(calls) == call:
                os.kill(os.getpid(), signal.SIGTERM)
            return outcome

        monkeypatch.setattr(where, name, signalled)
        monkeypatch.setattr(sys, 'argv', [f'{tool.__name__}.py', *map(str, arguments)])
        handler = signal.getsignal(signal.SIGTERM)
        with pytest.raises(SystemExit) as end:
            cli.run(tool.main)
        assert signal.getsignal(signal.SIGTERM) == handler
        lines = re.split(r'[\r\n]', capsys.readouterr().err)
        return end.value.code, [line for line in lines if line.strip() and '%|' not in line and 'pass/s' not in line]

    return run


def test_benchmark_keeps_the_rows_that_it_has(stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, 'CANDIDATES', {'a': benchmark.Candidate(small), 'b': benchmark.Candidate(small)})
    monkeypatch.setattr(benchmark, 'peak_memory_in_process', lambda *_: 1000)
    arguments = [
        '--sizes',
        '32x32',
        '64x64',
        '--modes',
        'forward',
        '--repeats',
        1,
        '--out',
        tmp_path,
        '--device',
        'cpu',
    ]
    code, lines = stop(benchmark, benchmark, 'run_once', *arguments, call=8)
    assert code == 143
    kept = re.fullmatch(r'stopped by SIGTERM(?: after (\d) of 4 rows, which are in .+)?', lines[-1])
    assert kept  # how many passes come before the rows depends on how quick they are
    if kept[1]:
        assert len(json.loads((tmp_path / 'results.json').read_text())['results']) == int(kept[1])


def test_benchmark_says_that_it_has_nothing(stop: Stop, tmp_path: Path) -> None:
    code, lines = stop(benchmark, benchmark, 'parse_size', '--out', tmp_path, '--device', 'cpu', call=7)
    assert (code, lines) == (143, ['stopped by SIGTERM before anything was measured'])
    assert list(tmp_path.iterdir()) == []


def small() -> nn.Module:
    return benchmark.Maps(TINY)


def test_validation_gives_the_accuracy_so_far(stop: Stop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(8):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.new('RGB', (40, 40)).save(tmp_path / f'{i % 2}/{i}.png')
    model = create_model('cvt_13', arch=TINY, num_classes=2)
    monkeypatch.setattr(validate_imagenet, 'build_model', lambda *_: model)
    printed: list[str] = []
    monkeypatch.setattr('builtins.print', lambda *args, **kwargs: printed.append(str(args[0])))
    arguments = ['--data', tmp_path, '--batch-size', 2, '--workers', 0, '--device', 'cpu']
    code, _ = stop(validate_imagenet, validate_imagenet.Hits, 'add', *arguments, call=2)
    assert code == 143
    assert re.fullmatch(r'cvt_13: partial, after 4 of 8 images: top-1 \d+\.00 %, top-5 100\.00 %', printed[-2])
    assert printed[-1] == 'stopped by SIGTERM'


def test_visualize_leaves_whole_pictures(stop: Stop, tmp_path: Path) -> None:
    paths = [tmp_path / f'{name}.png' for name in 'ab']
    for path in paths:
        Image.new('RGB', (64, 64)).save(path)
    out = tmp_path / 'out'
    arguments = [*paths, '--arch', 'cvt-13', '--out', out]
    code, lines = stop(visualize, visualize, 'draw_attention', *arguments, call=2)
    assert code == 143
    assert lines[-1] == f'stopped by SIGTERM after 1 of 2 images, whose pictures are in {out}'
    assert sorted(path.name for path in out.iterdir()) == ['a_attention.png', 'a_features.png']


def test_conversion_leaves_nothing(stop: Stop, tmp_path: Path) -> None:
    torch.save(CvTTrunk(TINY).state_dict(), tmp_path / 'in.pth')
    code, lines = stop(
        convert_checkpoint, convert_checkpoint, 'write', tmp_path / 'in.pth', tmp_path / 'out/x.safetensors'
    )
    assert (code, lines) == (143, ['stopped by SIGTERM'])
    assert list((tmp_path / 'out').iterdir()) == []


def test_export_leaves_nothing(stop: Stop, tmp_path: Path) -> None:
    options = ['--cfg-options', 'model.backbone.init_cfg=None']
    arguments = [DETECTION, '--part', 'backbone', '--out', tmp_path / 'x.pt', *options]
    code, lines = stop(export, exporting, 'exportable_copy', *arguments)
    assert code == 143
    assert lines[-1] == 'stopped by SIGTERM'
    assert list(tmp_path.iterdir()) == []


def test_making_a_data_set_leaves_nothing(stop: Stop, tmp_path: Path) -> None:
    arguments = ['--out', tmp_path / 'set', '--train', 9, '--val', 1, '--size', 64]
    code, lines = stop(make_shapes, shapes_files, 'scene_at', *arguments, call=3)
    assert (code, lines) == (143, ['stopped by SIGTERM'])
    assert list(tmp_path.iterdir()) == []


def test_a_second_signal_within_a_second_is_the_same_one() -> None:
    """So what ``timeout`` sends to a process and to its group does not end it before it has closed what is open."""
    closed = []

    def main() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            closed.append(True)

    with pytest.raises(SystemExit) as end:
        cli.run(main)
    assert end.value.code == 143
    assert closed
