"""``tools/make_env.sh`` with a Python and a uv that only write down what they are asked for."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import doctor_machine
import pytest
from paths import ROOT

#: Makes "environments" of two scripts, this one and UV, and answers what the script asks about Python.
PYTHON = """#!/bin/bash
case "$*" in
    '-m venv '*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$(dirname "$0")/uv" "$3/bin/uv" ;;
    '-m pip config list') printf '%s' "$PIP_CONFIG" ;;
    '-m pip install '*) echo "pip ${*:4}" >>"$LOG" ;;
    *CHECK_OPS*) echo "check ${*: -1}" >>"$LOG"; exit "${CHECK_FAILS:-0}" ;;
    *sys.version_info*) printf '%s\\n' "$VERSION" "$0" "$HEADERS" ;;
    *ensurepip*) exit "${NO_VENV:-0}" ;;
    *) exec "$REAL_PYTHON" "$@" ;;
esac
"""
UV = """#!/bin/bash
echo "uv $* [$UV_DEFAULT_INDEX|$UV_INDEX|$SSL_CERT_FILE|$FORCE_CUDA|${CUDA_VISIBLE_DEVICES-unset}]" >>"$LOG"
[ "$2" = sync ] || exit 0
echo 'DEBUG running build_ext' >&2
echo 'DEBUG [24/78] c++ -I/a/b.cpp -c /tmp/a b/ops/nms.cpp -o /tmp/nms.o -O2' >&2
echo ' + numpy==2.2.6' >&2
[ -z "$SLEEP" ] || { sleep 60 & echo $! >"$SLEEP"; wait; }
[ -z "$UV_FAILS" ] || { echo 'error: no network' >&2; exit 2; }
"""


class Machine:
    """A copy of the files that an environment is made from, and a PATH with fakes."""

    def __init__(self, folder: Path) -> None:
        self.root, self.venv, self.log, self.bin = (folder / name for name in ('root', 'an env', 'log', 'bin'))
        for name in ('uv.toml', 'pyproject.toml', 'setup.py', 'tools/make_env.sh', 'tools/doctor_machine.py'):
            (self.root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.root / name)
        shutil.copytree(ROOT / 'requirements', self.root / 'requirements')
        (self.root / 'cvt_dense' / '.mim').mkdir(parents=True)
        self.bin.mkdir()
        self.add('python', PYTHON)
        self.add('uv', UV)
        self.add('c++', '#!/bin/sh\n')
        (folder / 'Python.h').touch()
        for name in (
            'bash',
            'cat',
            'cp',
            'dirname',
            'env',
            'find',
            'flock',
            'head',
            'ls',
            'mkdir',
            'rm',
            'sed',
            'sleep',
        ):
            (self.bin / name).symlink_to(shutil.which(name))
        for name in ('printenv', 'sha256sum', 'tee'):
            (self.bin / name).symlink_to(shutil.which(name))
        self.env = dict(
            PATH=str(self.bin), LOG=str(self.log), REAL_PYTHON=sys.executable, VERSION='3.11', HEADERS=str(folder)
        )

    def add(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def command(self, stack: str = 'onedl', python: str = 'python') -> list[str]:
        return ['bash', str(self.root / 'tools' / 'make_env.sh'), str(self.venv), stack, python]

    def make(self, stack: str = 'onedl', python: str = 'python', **env: str) -> subprocess.CompletedProcess[str]:
        """Run the script; what the fakes are asked for is then in `asked`."""
        self.log.write_text('')
        return subprocess.run(
            self.command(stack, python), env=self.env | env, capture_output=True, text=True, check=False, timeout=60
        )

    @property
    def asked(self) -> str:
        return self.log.read_text()

    def assert_refused(self, told: str, **env: str) -> None:
        """One line that says why, and nothing done."""
        result = self.make(**env)
        assert result.returncode == 1
        assert re.fullmatch(f'error: .*{told}.*\n', result.stderr)
        assert self.asked == ''


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize('version', ['2.7', '3.9', '3.13'])
def test_another_python_is_refused(machine: Machine, version: str) -> None:
    machine.assert_refused(
        rf'3\.10 to 3\.12 is needed, and python is {version} .make env PYTHON=python3\.12', VERSION=version
    )


def test_the_versions_of_python_are_those_of_the_doctor() -> None:
    oldest, newest = ('.'.join(map(str, v)) for v in (doctor_machine.OLDEST_PYTHON, doctor_machine.NEWEST_PYTHON))
    assert f'Python {oldest} to {newest} is needed' in (ROOT / 'tools' / 'make_env.sh').read_text()


def test_a_python_that_is_not_there_is_refused(machine: Machine) -> None:
    result = machine.make(python='python3.99')
    assert result.returncode == 1
    assert re.fullmatch('error: .*, and python3.99 is no Python that runs .*\n', result.stderr)


def test_what_compiling_takes_is_looked_for_first(machine: Machine, tmp_path: Path) -> None:
    machine.assert_refused('venv', NO_VENV='1')
    machine.assert_refused('C.. compiler', CXX='g++-99 -O2')
    machine.assert_refused('headers.*python3.11-dev', HEADERS=str(tmp_path / 'nowhere'))
    (machine.bin / 'c++').unlink()
    machine.assert_refused('C.. compiler')


def test_a_folder_of_something_else_is_refused(machine: Machine) -> None:
    machine.venv.mkdir()
    (machine.venv / 'thesis.tex').touch()
    machine.assert_refused('holds files')
    assert (machine.venv / 'thesis.tex').exists()


def test_the_second_run_does_nothing(machine: Machine) -> None:
    result = machine.make()
    assert result.returncode == 0, result.stderr
    asked = machine.asked.splitlines()
    assert re.match(r'pip .*uv==\d', asked[0])
    assert asked[1].startswith('uv pip sync --compile-bytecode requirements/onedl.txt')
    assert '-e .' in asked[2]
    assert asked[3] == 'check cpu'
    assert '[24/78] nms.cpp\n' in result.stdout
    assert 'numpy' not in result.stdout + result.stderr
    assert 'DEBUG' not in result.stdout + result.stderr
    result = machine.make()
    assert (result.returncode, machine.asked) == (0, '')
    assert result.stdout == f'environment {machine.venv} is up to date\n'


@pytest.mark.parametrize('changed', ['requirements/onedl.txt', 'uv.toml', 'setup.py', 'pyproject.toml'])
def test_a_change_makes_the_environment_anew(machine: Machine, changed: str) -> None:
    machine.make()
    (machine.venv / 'leftover').touch()
    with (machine.root / changed).open('a') as file:
        file.write('# changed\n')
    assert machine.make().returncode == 0
    assert 'uv pip sync' in machine.asked
    assert not (machine.venv / 'leftover').exists()


def test_another_stack_python_or_checkout_makes_it_anew(machine: Machine) -> None:
    machine.make()
    machine.make('openmmlab')
    assert 'uv pip sync --compile-bytecode requirements/openmmlab.txt' in machine.asked
    machine.make('openmmlab', VERSION='3.12')
    assert 'uv pip sync' in machine.asked
    machine.root = machine.root.rename(machine.root.with_name('moved'))
    machine.make('openmmlab', VERSION='3.12')
    assert '-e .' in machine.asked


@pytest.mark.parametrize('failure', ['UV_FAILS', 'CHECK_FAILS'])
def test_what_failed_is_not_taken_for_whole(machine: Machine, failure: str) -> None:
    result = machine.make(**{failure: '1'})
    assert result.returncode == 1
    assert ('error: no network' in result.stdout) == (failure == 'UV_FAILS')
    assert 'tools/doctor.py' in result.stderr.splitlines()[-1]
    result = machine.make()
    assert result.stdout.endswith(' is ready\n')
    assert 'uv pip sync' in machine.asked


def is_running(pid: str) -> bool:
    try:
        return 'zombie' not in Path(f'/proc/{pid}/status').read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing_running(machine: Machine, tmp_path: Path, number: int) -> None:
    pid = tmp_path / 'pid'
    process = subprocess.Popen(machine.command(), env=machine.env | {'SLEEP': str(pid)}, stderr=subprocess.PIPE)
    while not (pid.exists() and pid.read_text().endswith('\n')):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert b'error: interrupted' in process.communicate(timeout=10)[1]
    assert process.returncode == 1
    deadline = time.monotonic() + 5
    while is_running(pid.read_text().strip()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert machine.make().stdout.endswith(' is ready\n')


def test_settings_of_pip_are_meant_for_uv_too(machine: Machine) -> None:
    config = "global.cert='/c.pem'\nglobal.extra-index-url='https://a/s'\nglobal.index-url='https://i/s'\n"
    machine.make(PIP_CONFIG=config)
    assert '[https://i/s||/c.pem|0|]' in machine.asked  # not the extra one, which pip and uv treat differently
    shutil.rmtree(machine.venv)
    machine.make(PIP_CONFIG=f":env:.index-url='https://e/s'\n{config}", SSL_CERT_FILE='/u.pem')
    assert '[https://e/s||/u.pem|0|]' in machine.asked
    machine.make('lock', PIP_CONFIG=config)
    assert machine.asked.count('[https://i/s||/c.pem||unset]') == 3


def add_gpu(machine: Machine, nvcc: str) -> None:
    machine.add('nvidia-smi', '#!/bin/sh\necho 9.0\n')
    machine.add('nvcc', f'#!/bin/sh\necho "Cuda compilation tools, release {nvcc}, V1"\n')


def test_builds_for_the_cpu_and_for_cuda_are_kept_apart(machine: Machine) -> None:
    add_gpu(machine, '13.0')
    machine.make()
    assert '--config-settings-package onedl-mmcv:cuda=cuda-13.0-9.0 ' in machine.asked
    assert '|1|unset]' in machine.asked
    assert 'check cuda' in machine.asked
    machine.make(FORCE_CUDA='0')
    assert 'config-settings' not in machine.asked
    assert '|0|]' in machine.asked
    assert 'check cpu' in machine.asked
    machine.make(TORCH_CUDA_ARCH_LIST='8.0;9.0')
    assert 'onedl-mmcv:cuda=cuda-13.0-8.0;9.0 ' in machine.asked


@pytest.mark.parametrize(('stack', 'fits', 'other'), [('onedl', '13.1', '12.4'), ('openmmlab', '12.8', '13.0')])
def test_a_toolkit_that_does_not_fit_torch(machine: Machine, stack: str, fits: str, other: str) -> None:
    add_gpu(machine, fits)
    machine.make(stack)
    assert f'mmcv:cuda=cuda-{fits}-9.0' in machine.asked
    add_gpu(machine, other)
    result = machine.make(stack)
    assert re.search(f'^note: .*nvcc is of CUDA {other} and torch of CUDA 1', result.stdout, re.MULTILINE)
    assert 'check cpu' in machine.asked
    result = machine.make(stack, FORCE_CUDA='1')
    assert result.returncode == 1
    assert re.fullmatch('error: FORCE_CUDA=1, but nvcc is of .*\n', result.stderr)


def test_packages_of_clients_move_no_pin() -> None:
    pins = [
        set((ROOT / 'requirements' / f'{stack}.txt').read_text().splitlines()[2:]) for stack in ('onedl', 'clients')
    ]
    assert pins[0] < pins[1]


def test_every_package_is_pinned() -> None:
    for file in (ROOT / 'requirements').glob('*.txt'):
        names = []
        for line in file.read_text().splitlines():
            assert line.lstrip().startswith('#') or re.match(r'[\w.-]+==[\w.+!]+( ; .+)?$', line), (
                f'{file.name}: {line}'
            )
            if "sys_platform == 'never'" not in line:  # what uv.toml says is not wanted
                names.append(line.split('==')[0])
        # None of the fork's packages beside upstream's: they unpack into the same folders, as the two of OpenCV do.
        assert ('onedl-mmcv' in names) == (file.stem in ('onedl', 'clients'))
        assert ('mmcv' in names) == (file.stem == 'openmmlab')
        assert 'opencv-python' not in names
