"""The command line of tools/make_shapes.py; what it writes is tested in tests/datasets."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from cvt_dense.datasets import shapes_files
from cvt_dense.datasets.shapes import Scene, scene_at

SIZE = 64

Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the tool and returns its exit code; an option given again takes the place of the one here."""

    def run(out: Path, *options: str) -> int:
        base = ['make_shapes.py', '--out', str(out), '--train', '3', '--val', '1', '--size', str(SIZE), '--seed', '5']
        monkeypatch.setattr(sys, 'argv', [*base, *options])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / 'tools' / 'make_shapes.py'), run_name='__main__')
        return exit_.value.code

    return run


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    errors = capsys.readouterr().err
    assert errors.startswith('error: ')
    assert errors.count('\n') == 1
    return errors


def test_same_set_is_not_made_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'set'
    assert run(out) == 0
    assert f'wrote 3 training and 1 validation images to {out} in ' in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    assert len(before) == 3 + 1 + 3 + 1 + 4 + 6, 'scenes, label maps, other files, folders'
    assert run(out) == 0
    assert 'nothing to do' in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob('*')} == before
    assert os.listdir(tmp_path) == ['set']


def test_another_set_is_replaced_by_force_alone(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / 'set'
    assert run(out) == 0
    assert run(out, '--train', '4') == 2
    assert 'other parameters; --force replaces' in one_line(capsys)
    assert len(list((out / 'images/training').iterdir())) == 3
    assert run(out, '--train', '4', '--force') == 0
    assert len(list((out / 'images/training').iterdir())) == 4


def test_ctrl_c_leaves_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(seed: int, split: str, index: int, size: int) -> Scene:
        if index == 2:
            assert len(list(tmp_path.rglob('*.jpg'))) == 2
            raise KeyboardInterrupt
        return scene_at(seed, split, index, size)

    monkeypatch.setattr(shapes_files, 'scene_at', interrupt)
    assert run(tmp_path / 'set') == 130
    assert capsys.readouterr().err == 'stopped by SIGINT\n'
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--size', '31'], 'size must be at least 32'),
        (['--train', '-1'], 'train must be between 0'),
        (['--val', '-5'], 'val must be between 0'),
        (['--train', '0', '--val', '0'], 'nothing to make'),
        (['--seed', '-1'], 'seed must be between 0'),
        (['--seed', str(2**32)], 'seed must be between 0'),
        (['--preview', 'preview.gif'], 'must be a .png file'),
        (['--preview', 'no/such/folder/p.png'], 'folder of the preview does not exist'),
    ],
)
def test_bad_value_is_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run(tmp_path / 'set', *options) == 2
    assert words in one_line(capsys)
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--size', 'big'], "argument --size: invalid int value: 'big'"),
        (['--trian', '3'], 'unrecognized arguments: --trian 3'),
        (['--train'], 'argument --train: expected one argument'),
    ],
)
def test_bad_option_ends_with_the_usage_and_one_line(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    assert run(tmp_path / 'set', *options) == 2
    errors = capsys.readouterr().err
    assert errors.startswith('usage: make_shapes.py')
    assert errors.splitlines()[-1] == f'make_shapes.py: error: {words}'
    assert not os.listdir(tmp_path)


def test_unwritable_place_is_one_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / 'file'
    file.write_text('x')
    for out in (file, file / 'set'):
        assert run(out) == 2
        assert str(file) in one_line(capsys)
    assert os.listdir(tmp_path) == ['file']
    assert file.read_text() == 'x'


def test_missing_package_is_one_line(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, 'skimage', None)
    assert run(tmp_path / 'set') == 2
    assert 'skimage is not installed: pip install scikit-image' in one_line(capsys)


def test_preview(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, preview = tmp_path / 'set', tmp_path / 'preview.png'
    assert run(out, '--preview', str(preview)) == 0
    assert capsys.readouterr().out.endswith(f'wrote {preview}\n')
    with Image.open(preview) as image:
        assert image.mode == 'RGB'
        assert image.width > 8 * SIZE
        first = np.array(image)[3 : 3 + SIZE, 3 : 3 + SIZE]
    assert (first == scene_at(5, 'train', 0, SIZE).image).all()
    assert run(out, '--preview', str(out / 'preview.png')) == 2
    assert 'outside the data set' in one_line(capsys)
