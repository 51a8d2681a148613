from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import documents
import pytest
import run_timm
import timm
from paths import ROOT
from tool_processes import ToolProcess

TOOL = ROOT / 'tools' / 'run_timm.py'
#: Stands for timm's train.py: knows a model by its name alone, and imports what lies beside it.
SCRIPT = """
import json, os, sys
import beside
import timm

if __name__ == '__main__':
    model = timm.create_model(sys.argv[sys.argv.index('--model') + 1], num_classes=3)
    seen = dict(argv=sys.argv, classes=model.num_classes, main=sys.modules['__main__'].__file__)
    with open(f"seen_{os.environ.get('RANK', '')}.json", 'w') as file:
        json.dump(seen, file)
    sys.exit(beside.EXIT_CODE)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the script."""
    (tmp_path / 'timm_scripts').mkdir()
    (tmp_path / 'timm_scripts' / 'train.py').write_text(SCRIPT)
    (tmp_path / 'timm_scripts' / 'beside.py').write_text('EXIT_CODE = 7')
    return tmp_path


def run(folder: Path, *arguments: object, tool: Path = TOOL) -> tuple[int, str]:
    """Run the tool there; returns its exit code and all that it printed."""
    process = ToolProcess([tool, *arguments], log=folder / 'log', cwd=folder)
    process.wait(timeout=100)
    return process.returncode, (folder / 'log').read_text()


def test_a_script_gets_its_arguments_and_our_models_and_gives_its_exit_code(folder: Path) -> None:
    arguments = ['data', '--model', 'cmt_ti', '--help', '--model-kwargs', "arch={'a': (1, 2)}", '--', '-j', '0']
    code, printed = run(folder, 'timm_scripts/train.py', *arguments)
    assert code == 7, printed
    seen = json.loads((folder / 'seen_.json').read_text())
    assert seen == dict(
        argv=['timm_scripts/train.py', *arguments], classes=3, main='timm_scripts/train.py'
    )  # workers of a data loader that is not forked run this file, and not the tool


def test_the_lines_of_the_page_do_the_same(folder: Path) -> None:
    lines = documents.blocks(ROOT / 'docs' / 'pretraining.md', 'python')[0]
    assert len([line for line in lines.splitlines() if line]) == 4
    (folder / 'run.py').write_text(lines)
    (folder / 'timm_scripts' / 'beside.py').unlink()
    (folder / 'timm_scripts' / 'train.py').write_text(
        SCRIPT.replace('import beside', '').replace('beside.EXIT_CODE', '7')
    )
    arguments = ['timm_scripts/train.py', '--model', 'cvt_13', '--help']
    code, printed = run(folder, *arguments, tool=folder / 'run.py')
    assert code == 7, printed
    assert json.loads((folder / 'seen_.json').read_text())['argv'] == arguments


def test_the_page_takes_the_scripts_of_the_timm_that_is_pinned() -> None:
    page = (ROOT / 'docs' / 'pretraining.md').read_text()
    pins = (ROOT / 'requirements' / 'onedl.txt').read_text()
    assert re.search(r'--branch v(\S+)', page)[1] == re.search(r'^timm==(\S+)', pins, re.MULTILINE)[1]


def test_torchrun_starts_it_in_several_processes(folder: Path) -> None:
    (folder / 'timm_scripts' / 'beside.py').write_text('EXIT_CODE = 0')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', '0']
    arguments = ['timm_scripts/train.py', '--model', 'cvt_13']
    environment = os.environ | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    result = subprocess.run(
        [*torchrun, str(TOOL), *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    for rank in range(2):
        assert json.loads((folder / f'seen_{rank}.json').read_text())['argv'] == arguments


def test_a_script_that_is_not_there_is_named_with_where_timm_has_it(tmp_path: Path) -> None:
    code, printed = run(tmp_path, 'nowhere/train.py', '--model', 'cvt_13')
    assert code == 2
    assert printed.splitlines() == [
        f'error: there is no script nowhere/train.py; timm has its scripts in its repository alone: git clone --branch '
        f'v{timm.__version__} https://github.com/huggingface/pytorch-image-models'
    ]


def test_the_scripts_own_errors_are_its_own(folder: Path) -> None:
    (folder / 'timm_scripts' / 'beside.py').write_text("raise OSError('of the script')")
    code, printed = run(folder, 'timm_scripts/train.py')
    assert code == 1
    assert printed.startswith('Traceback')
    assert printed.endswith('OSError: of the script\n')


def test_what_stands_before_the_script_is_the_tools(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, 'argv', ['run_timm.py', '--model', 'cvt_13', 'train.py'])
    with pytest.raises(SystemExit):
        run_timm.main()
    assert 'unrecognized arguments: --model' in capsys.readouterr().err
