"""The command at a stop is one that goes on when it is pasted."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from cvt_dense.engine import command as module
from cvt_dense.engine.command import Command, with_resume
from cvt_dense.engine.work_dir import way_on


@pytest.mark.parametrize(
    ('given', 'expected'),
    [
        ('t.py c.py', 't.py c.py --resume'),
        ('t.py c.py --resume', 't.py c.py --resume'),
        ('t.py c.py --resume --amp', 't.py c.py --amp --resume'),
        ('t.py c.py --resume old.pth --amp', 't.py c.py --amp --resume'),
        ('t.py --resume=old.pth c.py', 't.py c.py --resume'),
        ('t.py c.py --cfg-options a.b=1 c=d --ema', 't.py c.py --cfg-options a.b=1 c=d --ema --resume'),
    ],
)
def test_resume_is_there_once_and_names_no_older_checkpoint(given: str, expected: str) -> None:
    assert with_resume(given.split()) == expected.split()


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The process is one that a tool runs in, with arguments that a shell would take apart."""
    monkeypatch.chdir(tmp_path)
    arguments = ['tools/train.py', 'my config.py', '--cfg-options', "a.b=['x', 1]", 'c=$HOME', '--amp']
    monkeypatch.setattr(sys, 'argv', arguments)
    return tmp_path


def config(launcher: str = 'none', **variables: str) -> Config:
    return Config(dict(launcher=launcher), env_variables=variables)


def test_the_line_is_what_was_typed_with_the_variables_of_the_config(process: Path) -> None:
    command = Command()
    assert command.again is None
    command.remember(config(COCO_ROOT='/data/co co'))
    words = shlex.split(command.again)
    assert words[:4] == ['cd', str(process), '&&', 'COCO_ROOT=/data/co co']
    assert words[5:] == [*sys.argv, '--resume']
    assert words[4] in ('python', 'python3', sys.executable)


def test_in_a_terminal_the_shell_is_where_it_was(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    monkeypatch.setenv('PATH', str(Path(sys.executable).parent))
    command = Command()
    command.remember(config())
    assert command.again == f'{Path(sys.executable).name} {shlex.join(sys.argv)} --resume'


@pytest.mark.parametrize(
    ('before', 'expected'),
    [
        (['/env/bin/python', '/env/bin/torchrun', '--nproc_per_node=2'], ['torchrun', '--nproc_per_node=2']),
        (['python', '-m', 'torch.distributed.run', '--standalone'], ['torchrun', '--standalone']),
        (['my launcher', '-n', '2'], ['my launcher', '-n', '2']),
        (['srun', '-n', '2', 'something else'], None),
    ],
)
def test_what_launched_the_process_is_in_the_line(
    before: list[str], expected: list[str] | None, process: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*before, *sys.argv] if expected else before
    there = process / 'cmdline'
    there.write_bytes(b''.join(os.fsencode(word) + b'\0' for word in words))
    monkeypatch.setattr(module, 'Path', lambda path: there if str(path).startswith('/proc') else Path(path))
    command = Command()
    command.remember(config('pytorch'))
    if expected is None:
        assert command.again is None
    else:
        assert shlex.split(command.again)[3:] == [*expected, *sys.argv, '--resume']


def test_a_message_has_the_line_if_there_is_a_checkpoint(process: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert way_on(str(process)) == 'no checkpoint has been written yet'
    (process / 'last_checkpoint').write_text('run/iter_4.pth')
    assert way_on(str(process)) == 'go on from run/iter_4.pth with --resume'
    monkeypatch.setattr(module.command, 'again', 'python train.py --resume')
    assert way_on(str(process)) == 'go on from run/iter_4.pth with python train.py --resume'
