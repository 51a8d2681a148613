#!/usr/bin/env python3
"""Make the virtual environment that the configs, tools and tests of this project run in.

``python3 tools/setup_env.py --venv .venv`` installs what ``requirements/`` pins, compiles mmcv's operators
against the installed torch, and installs the project itself in editable mode. Run again, it redoes only the
steps whose inputs changed; an interrupted run is continued. It needs nothing but the standard library.
``--stack openmmlab`` installs upstream OpenMMLab and the oldest torch: what ``requirements/openmmlab/`` has
takes the place of the file of that name in ``requirements/``.

Environment variables: ``CVT_DENSE_CACHE`` (where built mmcv wheels are kept), ``FORCE_CUDA`` (1: CUDA
operators also without a GPU, 0: never), ``MAX_JOBS`` (parallel compilers), ``CFLAGS``, and everything that
pip and torch's extension builder read, such as ``TORCH_CUDA_ARCH_LIST``.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, NoReturn, TextIO  # noqa: UP035  (has to load on old Pythons, to refuse them)

try:
    import fcntl
except ImportError:  # Windows, which main() turns down in words
    fcntl = None  # type: ignore[assignment]

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 10)
NEWEST_PYTHON = (3, 12)
STACKS = ('onedl', 'openmmlab')  # the fork's packages and upstream's share their import names

STAMP_NAME = 'cvt_dense-setup.json'
LOG_FOLDER = 'cvt_dense-logs'
LOCK_NAME = 'cvt_dense-setup.lock'
OURS = (STAMP_NAME, LOG_FOLDER, LOCK_NAME)

STEP_WORDS = {
    'build': 'the build tools',
    'torch': 'torch',
    'libraries': 'the libraries',
    'mmcv': 'mmcv',
    'project': 'cvt_dense',
}
LOG_INTERVAL = 20.0  # seconds between two progress lines where output is not a terminal
GIB_PER_COMPILER = 2.0  # the larger of mmcv's files need this much each
GIB_WANTED = 8.0  # torch's CUDA packages and their downloads

CHECK_OPS = """
import torch, mmcv.ops
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 20., 30., 30.]])
kept = mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7]), .5)[1].tolist()
assert kept == [0, 2], f'mmcv.ops.nms kept {kept}'
import sys
if sys.argv[1] == 'cuda':
    assert mmcv.ops.get_compiling_cuda_version() != 'not available', 'mmcv was built without CUDA'
"""


class SetupError(Exception):
    """Something the user has to act on. Its text is shown as it is, without a traceback."""


# ----------------------------------------------------------------------------------------------------
# Progress and log files
# ----------------------------------------------------------------------------------------------------


def clock(seconds: float) -> str:
    """``0:07``, ``12:34`` or ``1:02:03``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'


def progress_of(line: str) -> str | None:
    """What a line of pip's or ninja's output says about how far things are; ``None`` if nothing."""
    line = line.strip()
    compiled = re.match(r'\[(\d+)/(\d+)\]', line)
    if compiled:
        return f'{compiled.group(1)} of {compiled.group(2)} objects compiled'
    fetching = re.match(r'Downloading (?:\S*/)?([^\s/]+?)(?:\.metadata)? (\([\d.]+ [kMG]?B\))', line)
    if fetching:
        return f'downloading {fetching.group(1)} {fetching.group(2)}'
    other = re.match(r'(Collecting|Building wheel for) (\S+)', line)
    if other:
        return f'{other.group(1).split()[0].lower()} {other.group(2)}'
    if line.startswith('Installing collected packages'):
        return 'unpacking'
    return None


class Progress:
    """One line a step; while a step runs, the terminal's last line or, in a log, a line every 20 seconds."""

    def __init__(self, total: int, out: TextIO | None = None) -> None:
        self.total = total
        self.out = out or sys.stdout
        self.tty = self.out.isatty()
        self.worked = False
        self._unchanged: list[str] = []
        self._head = ''
        self._detail = ''
        self._began = self._shown = 0.0

    def say(self, text: str) -> None:
        """A line of its own, before whatever the current step shows."""
        if self.tty:
            self.out.write('\r\x1b[K')
        self.out.write(text + '\n')
        self.out.flush()

    def end(self) -> None:
        """Leave the terminal's line, before something else writes."""
        if self.tty and self._head:
            self.out.write('\n')
            self.out.flush()

    def unchanged(self, number: int, title: str) -> None:
        """Note a step with nothing to do; told only if some other step has."""
        self._unchanged.append(f'[{number}/{self.total}] {title}: unchanged')
        if self.worked:
            self._tell_unchanged()

    @contextlib.contextmanager
    def step(self, number: int, title: str) -> Iterator[None]:
        """Show a step while it runs, and its time once it is done."""
        self.worked = True
        self._tell_unchanged()
        self._head, self._detail = f'[{number}/{self.total}] {title}', ''
        self._began = self._shown = time.monotonic()
        if not self.tty:
            self.say(f'{self._head} ...')
        self.tick()
        yield
        self.say(f'{self._head}: done in {clock(time.monotonic() - self._began)}')

    def detail(self, text: str) -> None:
        """What the current step is at."""
        self._detail = text
        self.tick()

    def tick(self) -> None:
        """Refresh the display if it is time to."""
        now = time.monotonic()
        text = f'{self._head}: {clock(now - self._began)}' + (f', {self._detail}' if self._detail else '')
        if self.tty:
            width = shutil.get_terminal_size().columns - 1
            self.out.write('\r\x1b[K' + text[:width])
            self.out.flush()
        elif now - self._shown >= LOG_INTERVAL:
            self._shown = now
            self.say(text)

    def _tell_unchanged(self) -> None:
        for line in self._unchanged:
            self.say(line)
        self._unchanged.clear()


def _pump(stream: TextIO, lines: queue.Queue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)


def stop_group(process: subprocess.Popen[str]) -> None:
    """End a command and all that it started, if it still runs: first so that pip removes its temporary files."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(process.pid, number)
            process.wait(timeout=5)


def run_logged(command: list[str], env: dict[str, str], log: Path, progress: Progress, cwd: Path = ROOT) -> int:
    """Run a command with its output appended to ``log``, keep the display moving, and return the exit code.

    The command gets a process group of its own, so that no compiler is left behind when we are stopped.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open('a', encoding='utf-8') as file:
        file.write('$ ' + ' '.join(command) + '\n')
        process = subprocess.Popen(
            command,
            env=env,
            cwd=str(cwd),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding='utf-8',
            errors='replace',
            start_new_session=True,
        )
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=_pump, args=(process.stdout, lines), daemon=True).start()
        try:
            while True:
                try:
                    line = lines.get(timeout=1.0)
                except queue.Empty:
                    progress.tick()
                    continue
                if line is None:
                    return process.wait()
                file.write(line)
                news = progress_of(line)
                if news:
                    progress.detail(news)
        finally:
            stop_group(process)


# ----------------------------------------------------------------------------------------------------
# What went wrong, in words
# ----------------------------------------------------------------------------------------------------

# The first pattern found in a log gives the explanation, so the more telling ones stand first.
EXPLANATIONS: tuple[tuple[str, str], ...] = (
    (
        r'No space left on device|Disk quota exceeded',
        'the disk is full: free some space in the environment, in the temporary folder (TMPDIR) '
        'and in the caches, about 8 GB in all',
    ),
    (
        r'fatal error: Python\.h|Python\.h: No such file|Python\.h.{0,3} file not found',
        "Python's headers are missing: install them (Debian and Ubuntu: apt install python3-dev)",
    ),
    (
        r'(The detected CUDA version[^\n]*)',
        "the CUDA toolkit does not fit torch's: {0}; FORCE_CUDA=0 builds mmcv for the CPU only",
    ),
    (
        r'Killed signal terminated program|fatal error: Killed|cc1plus: out of memory'
        r'|virtual memory exhausted',
        'the compiler ran out of memory: try again with MAX_JOBS=1',
    ),
    (
        r"(?:No such file or directory|not found|command failed)[^\n]*'?\b(?:c\+\+|g\+\+|gcc|cc|clang\+\+)'?$"
        r"|\b(?:c\+\+|g\+\+|gcc|cc|clang\+\+)'?: (?:command )?not found"
        r"|error: command '[^']*(?:c\+\+|g\+\+|gcc|cc)' failed: No such file",
        'no C++ compiler was found: install one (Debian and Ubuntu: apt install g++)',
    ),
    (
        r'Skip building ext ops due to the absence of torch',
        'mmcv was built where torch is not visible (under build isolation), hence without its operators: '
        'unset PIP_NO_BUILD_ISOLATION and PIP_BUILD_CONSTRAINT and run this again',
    ),
    (
        r'Temporary failure in name resolution|Name or service not known|nodename nor servname'
        r'|Failed to establish a new connection|Connection refused|Network is unreachable'
        r'|Max retries exceeded'
        r'|ConnectTimeoutError|Read timed out|ProxyError|Connection aborted|Cannot connect to proxy',
        'a package could not be fetched: check the network, and the proxy or index that pip is configured with',
    ),
    (
        r'No matching distribution found for ([^\s(]+)',
        'pip finds no {0} for this Python and platform',
    ),
    (r'Permission denied: ([^\n]+)', 'no permission to write {0}'),
)


def explain(log_text: str) -> str | None:
    """The cause that a log gives away, in a sentence; ``None`` if it is none of the known ones."""
    for pattern, sentence in EXPLANATIONS:
        found = re.search(pattern, log_text, re.MULTILINE)
        if found:
            return sentence.format(*found.groups())
    return None


def last_errors(log_text: str, count: int = 3) -> str:
    """The last lines of a log that look like errors, or else just the last ones."""
    lines = [line.strip() for line in log_text.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r'\berror\b|Error:', line, re.IGNORECASE)]
    return '\n'.join('  ' + line[:200] for line in (telling or lines)[-count:])


def failed(what: str, log: Path) -> NoReturn:
    """Raise the `SetupError` for a command that failed and wrote ``log``."""
    text = log.read_text(encoding='utf-8', errors='replace')
    text = text[text.rfind('\n$ ') + 1 :]  # the command that failed, not the ones before it
    cause = explain(text)
    message = f'{what} failed: {cause}' if cause else f'{what} failed; its last words:\n{last_errors(text)}'
    raise SetupError(f'{message}\nfull log: {log}')


def python_problem(version: tuple[int, ...], platform: str = os.name) -> str | None:
    """Why this Python cannot be used, or ``None``."""
    if platform != 'posix':
        return 'this set-up works on Linux and macOS; on Windows use WSL'
    found = '.'.join(str(part) for part in version[:2])
    supported = f'{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}'
    hint = '(make env PYTHON=python3.12, or another of them)'
    if tuple(version[:2]) < OLDEST_PYTHON:
        return f'Python {found} is too old: {supported} is needed {hint}'
    if tuple(version[:2]) > NEWEST_PYTHON:
        return f'Python {found} is newer than the pinned packages: {supported} is needed {hint}'
    return None


def venv_problem() -> str | None:
    """Why this Python cannot make virtual environments, or ``None``."""
    from importlib.util import find_spec  # the submodule is not there on the Pythons refused before

    if find_spec('venv') is None or find_spec('ensurepip') is None:
        version = f'{sys.version_info[0]}.{sys.version_info[1]}'
        hint = f'(Debian and Ubuntu: apt install python{version}-venv)'
        return f'this Python cannot make virtual environments: install its venv module {hint}'
    return None


def compiler_problem(env: dict[str, str]) -> str | None:
    """What is missing to compile mmcv's operators, or ``None``."""
    compiler = env.get('CXX', '').split()
    if not any(shutil.which(name) for name in (compiler[:1] or ['c++', 'g++', 'clang++'])):
        return (
            "mmcv's operators have to be compiled and there is no C++ compiler: "
            'install one (Debian and Ubuntu: apt install g++)'
        )
    if not Path(sysconfig.get_path('include'), 'Python.h').exists():
        version = f'{sys.version_info[0]}.{sys.version_info[1]}'
        return (
            "mmcv's operators have to be compiled and Python's headers are missing: "
            f'install them (Debian and Ubuntu: apt install python{version}-dev)'
        )
    return None


# ----------------------------------------------------------------------------------------------------
# Inputs, keys, stamp
# ----------------------------------------------------------------------------------------------------


def digest(*parts: str | bytes | Path) -> str:
    """A short hash of texts and of the content of files (a missing file counts as empty)."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Path):
            part = part.read_bytes() if part.exists() else b''
        elif isinstance(part, str):
            part = part.encode()
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:16]


def pins(requirements: Path) -> dict[str, str]:
    """The versions that a requirements file pins packages to."""
    return dict(re.findall(r'^([\w-]+)==([^\s;#]+)', requirements.read_text(encoding='utf-8'), re.MULTILINE))


def stack_file(name: str, stack: str, requirements: Path) -> Path:
    """The requirements file that a stack uses: its own, or else the common one."""
    own = requirements / stack / name
    return own if own.exists() else requirements / name


def wheel_key(mmcv: str, torch: str, python: str, platform: str, variant: str) -> str:
    """The name under which a built mmcv is kept: all that its binary depends on."""
    return '_'.join(
        re.sub(r'[^\w.+-]', '-', part) for part in (f'mmcv-{mmcv}', f'torch-{torch}', python, platform, variant)
    )


class Stamp:
    """Which steps are done, with what inputs: a JSON file in the environment."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            steps = json.loads(path.read_text(encoding='utf-8'))['steps']
            self.steps: dict[str, str] = {str(name): str(key) for name, key in steps.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self.steps = {}  # absent or cut short: everything is looked at afresh

    def done(self, name: str, key: str) -> bool:
        """Whether the step was finished with these inputs."""
        return self.steps.get(name) == key

    def forget(self, name: str) -> None:
        """Take a step as not done, from before it starts."""
        self.steps.pop(name, None)
        self._write()

    def record(self, name: str, key: str) -> None:
        """Take a step as done with these inputs."""
        self.steps[name] = key
        self._write()

    def clear(self) -> None:
        """Take all steps as not done."""
        self.steps.clear()
        self._write()

    def _write(self) -> None:
        fresh = self.path.with_suffix('.new')
        fresh.write_text(json.dumps({'steps': self.steps}, indent=1) + '\n', encoding='utf-8')
        os.replace(fresh, self.path)


def cache_folder(env: dict[str, str]) -> Path:
    """``$CVT_DENSE_CACHE``, by default ``cvt_dense`` in the user's cache folder."""
    if env.get('CVT_DENSE_CACHE'):
        return Path(env['CVT_DENSE_CACHE']).expanduser().absolute()
    base = env.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(base).expanduser().absolute() / 'cvt_dense'


def has_ops(wheel: Path) -> bool:
    """Whether a file is a whole mmcv wheel with its compiled operators in it."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            return any(re.match(r'mmcv/_ext\..*(so|pyd)$', name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def kept_wheel(folder: Path) -> Path | None:
    """The usable mmcv wheel in a folder of the cache."""
    return next((wheel for wheel in sorted(folder.glob('*.whl')) if has_ops(wheel)), None)


# ----------------------------------------------------------------------------------------------------
# CPU or CUDA
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """What mmcv's operators are built for; ``note`` is worth telling the user."""

    kind: str  # 'cpu' or 'cuda'
    variant: str  # its part of the key of a built wheel
    note: str = ''


def visible_gpus(env: dict[str, str]) -> list[str]:
    """The compute capabilities of the NVIDIA GPUs that can be used, such as ``['9.0']``."""
    if env.get('CUDA_VISIBLE_DEVICES', 'all') in ('', '-1') or not shutil.which('nvidia-smi'):
        return []
    query = ['nvidia-smi', '--query-gpu=compute_cap', '--format=csv,noheader']
    try:
        result = subprocess.run(query, env=env, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return sorted(set(re.findall(r'^\d+\.\d+$', result.stdout, re.MULTILINE))) if result.returncode == 0 else []


def nvcc_version(env: dict[str, str]) -> str | None:
    """The version of the CUDA compiler that torch's extension builder would take, such as ``13.0``."""
    home = env.get('CUDA_HOME') or env.get('CUDA_PATH')
    nvcc = f'{home}/bin/nvcc' if home else shutil.which('nvcc') or '/usr/local/cuda/bin/nvcc'
    try:
        result = subprocess.run([nvcc, '--version'], env=env, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'release (\d+\.\d+)', result.stdout)
    return found.group(1) if found else None


def choose_target(force: str, gpus: list[str], nvcc: str | None, torch_cuda: str | None, arch_list: str = '') -> Target:
    """CUDA where a GPU and a fitting toolkit are, or ``FORCE_CUDA=1`` asks for it; the CPU otherwise."""
    forced = force == '1'
    if force == '0' or not (forced or gpus):
        return Target('cpu', 'cpu')
    if not torch_cuda:
        problem = 'the installed torch has no CUDA'
    elif nvcc is None:
        problem = f'no nvcc was found (install the CUDA toolkit {torch_cuda}, or set CUDA_HOME)'
    elif nvcc.split('.')[0] != torch_cuda.split('.')[0]:
        problem = f'nvcc is of CUDA {nvcc} and torch of CUDA {torch_cuda}'
    else:
        arch = arch_list or ' '.join(gpus) or 'all'
        return Target('cuda', f'cuda-{nvcc}-{arch}')
    if forced:
        raise SetupError(f'FORCE_CUDA=1, but {problem}')
    return Target('cpu', 'cpu', f'a GPU is there, but {problem}: mmcv operators are built for the CPU only')


# ----------------------------------------------------------------------------------------------------
# The environment
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Environment:
    """A virtual environment and how to run things in it."""

    venv: Path
    base_env: dict[str, str]
    progress: Progress

    @property
    def python(self) -> Path:
        """The environment's interpreter."""
        return self.venv / 'bin' / 'python'

    @property
    def site_packages(self) -> Path:
        """Where packages are installed."""
        return self.venv / 'lib' / f'python{sys.version_info[0]}.{sys.version_info[1]}' / 'site-packages'

    def variables(self, **more: str) -> dict[str, str]:
        """The variables for commands in the environment, less those that would lead pip elsewhere."""
        foreign = (
            'PYTHONPATH',
            'PYTHONHOME',
            'PIP_TARGET',
            'PIP_PREFIX',
            'PIP_ROOT',
            'PIP_REQUIRE_VIRTUALENV',
        )
        env = {name: value for name, value in self.base_env.items() if name not in foreign}
        env.update(
            VIRTUAL_ENV=str(self.venv),
            PATH=f'{self.venv / "bin"}{os.pathsep}{env.get("PATH", os.defpath)}',  # ninja is in there
            PYTHONNOUSERSITE='1',
            PYTHONUNBUFFERED='1',
            PIP_USER='0',
            PIP_NO_INPUT='1',
            PIP_DISABLE_PIP_VERSION_CHECK='1',
            LC_ALL='C.UTF-8',  # messages that `explain` can read
        )
        env.update(more)
        return env

    def log(self, name: str) -> Path:
        """The log file of a step."""
        return self.venv / LOG_FOLDER / f'{name}.log'

    def run(self, name: str, what: str, arguments: list[str], cwd: Path = ROOT, **variables: str) -> None:
        """Run the environment's Python; raise `SetupError` if it fails."""
        log = self.log(name)
        if run_logged([str(self.python), *arguments], self.variables(**variables), log, self.progress, cwd) != 0:
            failed(what, log)

    def pip_install(self, name: str, *arguments: str) -> None:
        """``pip install`` what the arguments say."""
        self.run(name, f'installing {STEP_WORDS[name]}', ['-m', 'pip', 'install', '--progress-bar', 'off', *arguments])

    def torch_versions(self) -> tuple[str, str | None] | None:
        """The installed torch's version and its CUDA's, read from a file: importing it takes seconds."""
        try:
            text = (self.site_packages / 'torch' / 'version.py').read_text(encoding='utf-8')
        except OSError:
            return None
        version = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
        cuda = re.search(r"^cuda\b.*= '([^']+)'", text, re.MULTILINE)
        return (version.group(1), cuda.group(1) if cuda else None) if version else None

    def has(self, distribution: str) -> bool:
        """Whether a distribution is installed."""
        return any(self.site_packages.glob(f'{distribution.replace("-", "_")}-*.dist-info'))


def remove_half_installed(site_packages: Path) -> None:
    """Remove the metadata of packages whose installation was cut off, so that pip installs them again.

    pip writes ``INSTALLER`` once all files of a package lie there.
    """
    for info in site_packages.glob('*.dist-info'):
        if not (info / 'INSTALLER').exists():
            shutil.rmtree(info, ignore_errors=True)


def empty_folder(folder: Path) -> None:
    """Empty an environment's folder but for our own files, which mark it as ours until it is whole again."""
    for entry in folder.iterdir():
        if entry.name in OURS:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def claim_folder(venv: Path) -> None:
    """Create the environment's folder; refuse one that holds something else."""
    if venv.exists() and not venv.is_dir():
        raise SetupError(f'{venv} is not a folder')
    foreign = venv.is_dir() and any(venv.iterdir())
    if foreign and not any((venv / name).exists() for name in ('pyvenv.cfg', *OURS)):
        raise SetupError(f'{venv} holds files and is no virtual environment: choose another folder (--venv, VENV=)')
    venv.mkdir(parents=True, exist_ok=True)
    if not os.access(venv, os.W_OK):
        raise SetupError(f'no permission to write in {venv}')


@contextlib.contextmanager
def locked(venv: Path, progress: Progress) -> Iterator[None]:
    """Keep two set-ups of one environment apart."""
    with (venv / LOCK_NAME).open('w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say(f'another set-up is at work in {venv}: waiting for it')
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks
        yield


# ----------------------------------------------------------------------------------------------------
# The steps
# ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """A step is skipped when it was done with the same key and what it made is still there."""

    name: str
    title: str
    key: Callable[[], str]
    present: Callable[[], bool]
    work: Callable[[], None]


class Setup:
    """The steps in order: torch before mmcv, which is compiled against it; mmcv after all it imports."""

    def __init__(self, env: Environment, stamp: Stamp, stack: str = STACKS[0]) -> None:
        self.env = env
        self.stamp = stamp
        self.stack = stack
        # the fork's versions begin where upstream's ended, so a version names one of the two
        self.mmcv_name, self.mmcv = next(iter(pins(self._file('mmcv.txt')).items()))
        self.wheels = cache_folder(env.base_env) / 'wheels'

    def _file(self, name: str) -> Path:
        return stack_file(name, self.stack, ROOT / 'requirements')

    def steps(self) -> list[Step]:
        """All steps."""
        env = self.env
        build, torch, constraints = (self._file(f'{name}.txt') for name in ('build', 'torch', 'constraints'))
        libraries = [self._file(f'{name}.txt') for name in ('runtime', self.stack, 'dev')]
        project = [ROOT / 'setup.py', ROOT / 'pyproject.toml', ROOT / 'cvt_dense' / 'version.py']
        return [
            Step('venv', f'virtual environment {env.venv}', self._venv_key, self._venv_present, self._make_venv),
            Step(
                'build',
                'build tools',
                lambda: digest(build),
                lambda: env.has('setuptools') and env.has('ninja'),
                lambda: self._install('build', build),
            ),
            Step(
                'torch',
                'torch and torchvision (several GB where CUDA comes with them)',
                lambda: digest(torch),
                lambda: env.has('torch') and env.has('torchvision') and env.torch_versions() is not None,
                lambda: self._install('torch', torch),
            ),
            Step(
                'libraries',
                'mmengine, mmdetection, mmsegmentation, timm and the rest',
                lambda: digest(*libraries, constraints),
                lambda: all(env.has(name) for name in [*pins(self._file(f'{self.stack}.txt')), 'timm', 'pytest']),
                lambda: self._install_libraries(libraries),
            ),
            Step(
                'mmcv',
                'mmcv and its operators',
                self._mmcv_key,
                lambda: env.has(self.mmcv_name),
                self._install_mmcv,
            ),
            Step(
                'project',
                'cvt_dense itself, in editable mode',
                lambda: digest(str(ROOT), *project),
                lambda: env.has('cvt_dense') and (ROOT / 'cvt_dense' / '.mim').exists(),
                self._install_project,
            ),
        ]

    def run(self) -> None:
        """Do what is to be done."""
        self._look_ahead()
        for number, step in enumerate(self.steps(), 1):
            if self.stamp.done(step.name, step.key()) and step.present():
                self.env.progress.unchanged(number, step.title)
                continue
            self.stamp.forget(step.name)
            with self.env.progress.step(number, step.title):
                self.env.log(step.name).unlink(missing_ok=True)
                step.work()
            self.stamp.record(step.name, step.key())

    def _look_ahead(self) -> None:
        """Find out before the downloads what would end the set-up after them."""
        free = shutil.disk_usage(self.env.venv).free / 2**30
        if free < GIB_WANTED and not self.env.has('torch'):
            self.env.progress.say(
                f'note: {free:.1f} GB are free in {self.env.venv}, and {GIB_WANTED:.0f} may be needed'
            )
        if 'mmcv' in self.stamp.steps or any(self.wheels.glob(f'mmcv-{self.mmcv}_*/*.whl')):
            return
        problem = compiler_problem(self.env.base_env)
        if problem:
            raise SetupError(problem)

    # -- venv

    def _venv_key(self) -> str:
        # with the stack: where one is laid over the other, each has files of both
        return digest(str(self.env.venv), sysconfig.get_python_version(), sysconfig.get_platform(), self.stack)

    def _venv_present(self) -> bool:
        # bin/python is a dead link if the Python it was made with is gone;
        # pip is broken if replacing it was cut off.
        pips = self.env.site_packages.glob('pip-*.dist-info/INSTALLER')
        return (self.env.venv / 'pyvenv.cfg').exists() and self.env.python.exists() and any(pips)

    def _make_venv(self) -> None:
        problem = venv_problem()
        if problem:
            raise SetupError(problem)
        env = self.env
        self.stamp.clear()
        empty_folder(env.venv)
        # not sys.executable, which may lie in the very environment that was emptied
        python = getattr(sys, '_base_executable', None) or sys.executable
        log = env.log('venv')
        if run_logged([python, '-m', 'venv', str(env.venv)], env.variables(), log, env.progress) != 0:
            failed('making the virtual environment', log)

    # -- packages

    def _install(self, name: str, *requirements: Path) -> None:
        remove_half_installed(self.env.site_packages)
        arguments = [argument for file in requirements for argument in ('-r', str(file))]
        # runtime.txt too: torchvision would else bring the newest numpy, only to be replaced a step later
        for file in ('constraints.txt', 'runtime.txt'):
            arguments += ['-c', str(self._file(file))]
        self.env.pip_install(name, *arguments)

    def _install_libraries(self, requirements: list[Path]) -> None:
        self._install('libraries', *requirements)
        # Some packages want opencv-python, others opencv-python-headless, and both unpack into one folder.
        # The second to be unpacked wins; with the headless one, no libGL is needed.
        headless = pins(self._file(f'{self.stack}.txt'))['opencv-python-headless']
        self.env.pip_install('libraries', '--no-deps', '--force-reinstall', f'opencv-python-headless=={headless}')

    # -- mmcv

    def _target(self) -> Target:
        env = self.env.base_env
        versions = self.env.torch_versions()
        force = env.get('FORCE_CUDA', '')
        gpus = visible_gpus(env) if force != '0' else []
        nvcc = nvcc_version(env) if gpus or force == '1' else None
        return choose_target(force, gpus, nvcc, versions[1] if versions else None, env.get('TORCH_CUDA_ARCH_LIST', ''))

    def _mmcv_key(self) -> str:
        versions = self.env.torch_versions()
        python = f'cp{sys.version_info[0]}{sys.version_info[1]}'
        torch = versions[0] if versions else 'none'
        return wheel_key(self.mmcv, torch, python, sysconfig.get_platform(), self._target().variant)

    def _install_mmcv(self) -> None:
        target = self._target()
        if target.note:
            self.env.progress.say(f'note: {target.note}')
        folder = self.wheels / self._mmcv_key()
        wheel = kept_wheel(folder)
        if wheel:
            try:
                self._install_wheel(wheel, target)
                return
            except SetupError:
                self.env.progress.say(f'note: {wheel} does not work here (any more): building mmcv again')
        self._install_wheel(self._build_wheel(folder, target), target)

    def _build_wheel(self, folder: Path, target: Target) -> Path:
        """Compile mmcv and keep the wheel in the cache."""
        problem = compiler_problem(self.env.base_env)
        if problem:
            raise SetupError(problem)
        self.wheels.mkdir(parents=True, exist_ok=True)
        for old in self.wheels.glob('.build-*'):  # of a build that was killed
            if time.time() - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)
        requirement = f'{self.mmcv_name}=={self.mmcv}'
        # Not straight into its folder: a wheel that is cut off must not be taken for a whole one.
        with tempfile.TemporaryDirectory(prefix='.build-', dir=str(self.wheels)) as made:
            flags = ['--no-deps', '--no-build-isolation', '--no-cache-dir', '--progress-bar', 'off', '-v']
            command = ['-m', 'pip', 'wheel', *flags, '-w', made, requirement]
            self.env.run('mmcv', 'building mmcv', command, **self._build_variables(target))
            wheel = next(Path(made).glob('*.whl'), None)
            if wheel is None or not has_ops(wheel):
                failed('building mmcv with its operators', self.env.log('mmcv'))
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            return Path(shutil.move(str(wheel), str(folder / wheel.name)))

    def _build_variables(self, target: Target) -> dict[str, str]:
        env = self.env.base_env
        variables = {
            'MMCV_WITH_OPS': '1',
            'MAX_JOBS': env.get('MAX_JOBS') or str(compiler_jobs()),
            # Without debug information it takes half the time and a fortieth of the space.
            'CFLAGS': env.get('CFLAGS') or '-g0 -O2',
            'FORCE_CUDA': '1' if target.kind == 'cuda' else '0',
        }
        if target.kind == 'cpu':
            variables['CUDA_VISIBLE_DEVICES'] = ''  # mmcv's build takes CUDA wherever it sees a GPU
        return variables

    def _install_wheel(self, wheel: Path, target: Target) -> None:
        remove_half_installed(self.env.site_packages)
        self.env.pip_install('mmcv', '--no-deps', '--force-reinstall', str(wheel))
        # Run outside of the checkout, so that nothing there is imported by chance.
        self.env.run('mmcv', "using mmcv's operators", ['-c', CHECK_OPS, target.kind], cwd=self.env.venv)

    # -- the project

    def _install_project(self) -> None:
        self.env.pip_install('project', '--no-deps', '--no-build-isolation', '-e', str(ROOT))


def compiler_jobs() -> int:
    """As many compilers as there are CPUs for us, or as fit into memory."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    try:
        memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30
    except (ValueError, OSError):
        return cpus
    return max(1, min(cpus, int(memory / GIB_PER_COMPILER)))


# ----------------------------------------------------------------------------------------------------
# Command line
# ----------------------------------------------------------------------------------------------------


def _stop(signal_number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description='Make or update the virtual environment of this project.')
    parser.add_argument('--venv', default='.venv', help='folder of the environment (default: .venv)')
    parser.add_argument(
        '--stack',
        choices=STACKS,
        default=STACKS[0],
        help='the maintained fork of OpenMMLab, or upstream with the oldest torch (default: onedl)',
    )
    options = parser.parse_args(arguments)

    problem = python_problem(sys.version_info)
    if problem:
        print(f'error: {problem}', file=sys.stderr)
        return 1

    signal.signal(signal.SIGTERM, _stop)
    progress = Progress(total=6)
    began = time.monotonic()
    try:
        venv = Path(options.venv).expanduser().resolve()
        claim_folder(venv)
        with locked(venv, progress):
            Setup(Environment(venv, dict(os.environ), progress), Stamp(venv / STAMP_NAME), options.stack).run()
    except SetupError as error:
        progress.end()
        print(f'error: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.end()
        print('interrupted: the same command goes on from here', file=sys.stderr)
        return 130
    except BrokenPipeError:  # nobody reads our output any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        progress.end()
        print(f'error: {explain(str(error)) or error}', file=sys.stderr)
        return 1
    if progress.worked:
        progress.say(f'environment {venv} is ready after {clock(time.monotonic() - began)}')
    else:
        progress.say(f'environment {venv} is up to date')
    return 0


if __name__ == '__main__':
    sys.exit(main())
