from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mmengine.runner.checkpoint import _load_checkpoint
from paths import ROOT
from small_config import CONFIG, load, message

from cvt_dense.engine import launch, run_checkpoints
from cvt_dense.errors import UserError

pytestmark = pytest.mark.usefixtures('launch_environment')


def test_settings_that_nothing_can_be_built_from_are_one_line(tmp_path: Path) -> None:
    cfg = load(tmp_path, CONFIG.replace("type='X', backbone=", "type='ImgDataPreprocessor', no_such_setting="))
    with pytest.raises(UserError, match='the config cannot be built: ') as error:
        launch.build_runner(cfg)
    message(error)


def ended(main: Callable[[], None], capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    """Exit code and lines on stderr of a run."""
    with pytest.raises(SystemExit) as exit_:
        launch.run(main)
    return exit_.value.code, capsys.readouterr().err.splitlines()


def test_mmengine_does_not_run_code_in_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Callable, tuple[str]]:
            return os.system, (f'touch {tmp_path / "created"}',)

    torch.save({'state_dict': {}, 'meta': Payload()}, tmp_path / 'a.pth')
    code, lines = ended(lambda: _load_checkpoint(str(tmp_path / 'a.pth')), capsys)
    assert not (tmp_path / 'created').exists()
    assert code == 2
    assert 'a.pth was refused: it is damaged, or holds more than plain weights' in lines[-1]
    assert 'Traceback' not in ''.join(lines)


def test_a_damaged_checkpoint_exits_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({'state_dict': {'a': torch.zeros(100)}}, tmp_path / 'a.pth')
    whole = (tmp_path / 'a.pth').read_bytes()
    (tmp_path / 'a.pth').write_bytes(whole[: len(whole) // 2])

    def main() -> None:
        run_checkpoints.check_checkpoint(str(tmp_path / 'a.pth'))
        _load_checkpoint(str(tmp_path / 'a.pth'))

    code, lines = ended(main, capsys)
    assert code == 2
    assert 'a.pth' in lines[-1]


def test_a_tool_ends_with_one_line_and_2() -> None:
    command = [sys.executable, '-W', 'ignore', str(ROOT / 'tools' / 'train.py'), 'missing.py']
    env = os.environ | {'PYTHONPATH': str(ROOT)}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        'error: config missing.py does not exist; the ones that come with cvt_dense are in configs/'
    ]
