"""What ``tools/doctor.py`` looks at on the machine: packages and hardware. No package is needed to look.

Each check is a function that yields what it found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OK, NOTE, FAIL = 'ok', 'note', 'FAIL'
GIB = 2**30
OLDEST_PYTHON, NEWEST_PYTHON = (3, 10), (3, 12)
COMPILER_GIB = 2  # what compiling the larger of mmcv's files takes
ENVIRONMENT_GIB = 8  # torch's CUDA packages, as they are downloaded and unpacked
PYTHON = 'python' if shutil.which('python') == sys.executable else shlex.quote(sys.executable)
PIP = f'{PYTHON} -m pip'
#: The page that names the indexes of torch's builds for each version of CUDA.
TORCH_WHEELS = 'https://pytorch.org/get-started/locally'
#: Whether mmcv's operators work, and with sys.argv[1] 'cuda', whether they were built with CUDA.
CHECK_OPS = """
import torch, mmcv.ops
boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 8.], [20., 20., 30., 30.]])
kept = mmcv.ops.nms(boxes, torch.tensor([.9, .8, .7]), .5)[1].tolist()
assert kept == [0, 2], f'mmcv.ops.nms kept {kept}'
import sys
if sys.argv[1] == 'cuda':
    assert mmcv.ops.get_compiling_cuda_version() != 'not available', 'mmcv was built without CUDA'
"""
#: Goes after CHECK_OPS: operators can be built for another generation of GPUs.
NMS_ON_GPU = 'mmcv.ops.nms(boxes.cuda(), torch.tensor([.9, .8, .7]).cuda(), .5)'


@dataclass(frozen=True)
class Result:
    """What a check found: a status, a sentence, and for a failure the command that fixes it."""

    status: str
    text: str
    fix: str = ''


@dataclass(frozen=True)
class Package:
    """A package that runs import.

    Attributes:
        module: Its import name.
        minimum: The oldest version that works, by the name of the distribution that brings the module.
        needed_by: The only scope of configs that needs it; None if all do.
    """

    module: str
    minimum: dict[str, str]
    needed_by: str | None = None


#: In this order, since the later ones import the former.
PACKAGES = (
    Package('numpy', {'numpy': '1.22'}),
    Package('torch', {'torch': '2.6'}),
    Package('torchvision', {'torchvision': '0.21'}),
    Package('safetensors', {'safetensors': '0.4'}),
    Package('huggingface_hub', {'huggingface_hub': '0.25'}),
    Package('wrapt', {'wrapt': '1.14'}),
    Package('timm', {'timm': '1.0.20'}),
    Package('mmengine', {'onedl-mmengine': '0.10.8', 'mmengine': '0.10', 'mmengine-lite': '0.10'}),
    Package('mmcv', {'onedl-mmcv': '2.3', 'mmcv': '2.0', 'mmcv-lite': '2.0'}),
    Package('mmdet', {'onedl-mmdetection': '3.5', 'mmdet': '3.0'}, 'mmdet'),
    Package('mmseg', {'onedl-mmsegmentation': '1.4', 'mmsegmentation': '1.0'}, 'mmseg'),
)
SETUPTOOLS_BELOW = '81'  # the first without pkg_resources, which mmengine may import
#: Distributions of the two stacks that carry the same import names.
ONEDL = ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation')
OPENMMLAB = ('mmengine', 'mmengine-lite', 'mmcv', 'mmcv-lite', 'mmcv-full', 'mmdet', 'mmsegmentation')

# ----------------------------------------------------------------------------------------------------
# Packages
# ----------------------------------------------------------------------------------------------------


def release(version: str) -> tuple[int, ...]:
    """``(2, 11, 0)`` of ``'2.11.0+cu130'``: the numbers that versions are ordered by."""
    return tuple(int(part) for part in re.match(r'[\d.]*', version)[0].strip('.').split('.') if part)


def installed(names: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def in_a_line(error: Exception) -> str:
    """An exception's name and the first line of its message."""
    return ': '.join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def how_to_install(package: Package) -> str:
    """The command that installs a package, of the stack that is there already."""
    stack = OPENMMLAB if installed(OPENMMLAB) and not installed(ONEDL) else ONEDL
    name = next((name for name in package.minimum if name in stack), next(iter(package.minimum)))
    # mmcv compiles its operators against the torch that it sees, and under build isolation it sees none.
    flags = '--no-build-isolation --no-cache-dir ' if package.module == 'mmcv' else ''
    return f"{PIP} install -U {flags}'{name}>={package.minimum[name]}'"


def check_python() -> Iterator[Result]:
    """Whether this Python is one of those that the project is for."""
    version, found = sys.version_info[:2], '.'.join(map(str, sys.version_info[:3]))
    wanted = ' to '.join('.'.join(map(str, edge)) for edge in (OLDEST_PYTHON, NEWEST_PYTHON))
    if version < OLDEST_PYTHON:
        yield Result(FAIL, f'{found} is too old, {wanted} is needed', 'make env PYTHON=python3.12')
    elif version > NEWEST_PYTHON:
        yield Result(NOTE, f'{found} is newer than what was tried, {wanted}')
    else:
        yield Result(OK, found)


def check_package(package: Package, scopes: set[str]) -> Iterator[Result]:
    """Whether a package is there, new enough, and can be imported.

    Args:
        package: The package.
        scopes: Those of ``'mmdet'`` and ``'mmseg'`` that the config needs.
    """
    command = how_to_install(package)
    versions = installed(package.minimum)
    if not versions and find_spec(package.module) is None:
        if package.needed_by is None or package.needed_by in scopes:
            yield Result(FAIL, 'is not installed', command)
        else:
            yield Result(NOTE, f'is not installed; configs of {package.module} need it: {command}')
        return
    old = {name: version for name, version in versions.items() if release(version) < release(package.minimum[name])}
    for name, version in old.items():
        yield Result(FAIL, f'{version} is too old, {package.minimum[name]} is needed', command)
    if old:
        return
    try:
        module = importlib.import_module(package.module)
    except Exception as error:  # what a package that does not fit its surroundings raises can be anything
        yield Result(FAIL, *why_not_imported(error, package))
        return
    if not versions:
        yield Result(NOTE, f'{module.__version__}, from {module.__file__}, which pip did not install')
    for name, version in versions.items():
        yield Result(OK, version if name == package.module else f'{version} ({name})')


def why_not_imported(error: Exception, package: Package) -> tuple[str, str]:
    """What to say of a package that is installed and cannot be imported, and the command that fixes it."""
    message = f'is installed and cannot be imported: {in_a_line(error)}'
    lacks = error.name.split('.')[0] if isinstance(error, ModuleNotFoundError) and error.name else None
    if lacks and lacks != package.module:
        known = next((other for other in PACKAGES if other.module == lacks), None)
        return message, how_to_install(known) if known else f'{PIP} install {lacks}'
    wish = re.search(r'[Pp]lease install (mm\w+)([^\n]*?)\.?$', str(error))  # upstream's words to other versions
    if wish:
        return message, f"{PIP} install --no-build-isolation --no-cache-dir '{wish[1]}{wish[2].replace(' ', '')}'"
    if 'libGL' in str(error):
        return message, f'{PIP} install --force-reinstall --no-deps opencv-python-headless'
    return message, f'{how_to_install(package)} --force-reinstall --no-deps'


def check_setuptools() -> Iterator[Result]:
    """Whether setuptools is of those that bring ``pkg_resources``."""
    version = installed(('setuptools',)).get('setuptools')
    if version is None or release(version) >= release(SETUPTOOLS_BELOW):
        message = f'{version} lacks' if version else 'is not installed: there is no'
        command = f"{PIP} install 'setuptools<{SETUPTOOLS_BELOW}'"
        yield Result(FAIL, f'{message} pkg_resources, which mmengine may import', command)
    else:
        yield Result(OK, version)


def check_torchvision_pair() -> Iterator[Result]:
    """Whether torchvision was built for this torch: by their versions, and by running one of its operators."""
    versions = installed(('torch', 'torchvision'))
    if len(versions) < 2:
        return
    torch_release, vision_release = release(versions['torch']), release(versions['torchvision'])
    wanted = (0, torch_release[1] + 15)
    pair = f'torchvision {versions["torchvision"]} and torch {versions["torch"]}'
    command = f"{PIP} install --force-reinstall --no-deps 'torchvision=={wanted[0]}.{wanted[1]}.*'"
    if torch_release[0] == 2 and vision_release[:2] != wanted:
        yield Result(FAIL, f'{pair} do not belong together, torchvision {wanted[0]}.{wanted[1]} does', command)
        return
    import torch
    from torchvision.ops import nms

    try:
        nms(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.ones(1), 0.5)
    except (RuntimeError, NotImplementedError) as error:  # operators that were built for another torch are not there
        yield Result(FAIL, f'{pair} do not work together: {in_a_line(error)}', command)
    else:
        yield Result(OK, f'{pair} belong together')


def check_stack() -> Iterator[Result]:
    """Whether the OpenMMLab packages are all upstream's or all of the OneDL fork: they share folders."""
    onedl, upstream = installed(ONEDL), installed(OPENMMLAB)
    if onedl and upstream:
        names = ', '.join([*onedl, *upstream])
        again = f"{PIP} install --no-build-isolation --no-cache-dir -e '{ROOT}[onedl]'"
        remove = f'{PIP} uninstall -y {" ".join([*onedl, *upstream])}'
        yield Result(FAIL, f'both stacks are installed and overwrite each other: {names}', f'{remove} && {again}')
    elif onedl or upstream:
        yield Result(OK, f'all of {"the OneDL fork" if onedl else "OpenMMLab"}')


def check_mmcv_operators() -> Iterator[Result]:
    """Whether mmcv's operators are there and work with this torch, with CUDA where torch has a GPU.

    In a process of its own, which operators that were built for another torch can bring down.
    """
    if find_spec('mmcv') is None or find_spec('torch') is None:
        return
    import torch

    kind = 'cuda' if torch.cuda.is_available() else 'cpu'
    code = CHECK_OPS + (NMS_ON_GPU if kind == 'cuda' else '')
    ran = subprocess.run([sys.executable, '-c', code, kind], capture_output=True, text=True, check=False)
    name = 'mmcv' if installed(OPENMMLAB) and not installed(ONEDL) else 'onedl-mmcv'
    force = 'FORCE_CUDA=1 ' if kind == 'cuda' else ''
    build = f'{PIP} install --no-build-isolation --no-cache-dir --force-reinstall --no-deps --no-binary {name} {name}'
    if ran.returncode == 0:
        yield Result(OK, f'work with this torch, on the {kind.upper()}')
    else:
        message = (ran.stderr.strip().splitlines() or [f'the process ended with {ran.returncode}'])[-1]
        yield Result(FAIL, f'do not work: {message}', f'{force}MMCV_WITH_OPS=1 {build}')


# ----------------------------------------------------------------------------------------------------
# Compiling mmcv's operators
# ----------------------------------------------------------------------------------------------------


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


def mmcv_target(torch_cuda: str | None, env: dict[str, str]) -> tuple[str, str]:
    """What to build mmcv's operators for: ``'cpu'``, or CUDA where there is a GPU or ``FORCE_CUDA=1`` asks for it.

    Args:
        torch_cuda: The version of CUDA that torch is built for, if any.
        env: The variables of the environment.

    Returns:
        ``'cpu'`` or, with the toolkit's version and the GPUs' capabilities, ``'cuda-13.0-9.0'``; and if it is the CPU
        for want of a toolkit that fits, the reason.
    """
    force = env.get('FORCE_CUDA', '')
    gpus = visible_gpus(env) if force != '0' else []
    if not gpus and force != '1':
        return 'cpu', ''
    nvcc = nvcc_version(env)
    if not torch_cuda:
        return 'cpu', 'torch is built without CUDA'
    if nvcc is None:
        return 'cpu', f'nvcc was not found: install the CUDA toolkit {torch_cuda}, or set CUDA_HOME'
    if nvcc.split('.')[0] != torch_cuda.split('.')[0]:
        return 'cpu', f'nvcc is of CUDA {nvcc} and torch of CUDA {torch_cuda}: set CUDA_HOME to a toolkit that fits'
    return f'cuda-{nvcc}-{env.get("TORCH_CUDA_ARCH_LIST") or " ".join(gpus) or "all"}', ''


def compiler_jobs() -> int:
    """As many compilers as there are CPUs for us, or as fit into memory."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    memory = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    return max(1, min(cpus, memory // (COMPILER_GIB * GIB)))


def check_compiling() -> Iterator[Result]:
    """Whether `make env` can compile mmcv's operators here. Failures where they are not there yet, else notes."""
    spec = find_spec('mmcv')
    compiled = bool(spec and spec.origin and list(Path(spec.origin).parent.glob('_ext.*')))
    problems = list(compiling_problems(dict(os.environ)))
    for problem, fix in problems:
        yield Result(NOTE, f'{problem}: {fix}') if compiled else Result(FAIL, problem, fix)
    if not problems:
        yield Result(OK, "all is there that compiling mmcv's operators takes")


def compiling_problems(env: dict[str, str]) -> Iterator[tuple[str, str]]:
    """What stops `make env` from compiling mmcv's operators, and what to do about it."""
    python = 'python{}.{}'.format(*sys.version_info)
    names = env.get('CXX', '').split()[:1] or ['c++', 'g++', 'clang++']
    if not any(shutil.which(name) for name in names):
        yield f'no C++ compiler was found ({", ".join(names)})', 'apt install g++ (Debian and Ubuntu)'
    if not Path(sysconfig.get_path('include'), 'Python.h').is_file():
        yield "Python's headers were not found", f'apt install {python}-dev (Debian and Ubuntu)'
    if find_spec('ensurepip') is None:
        yield 'this Python cannot make virtual environments', f'apt install {python}-venv (Debian and Ubuntu)'
    jobs = int(env['MAX_JOBS']) if env.get('MAX_JOBS', '').isdigit() else compiler_jobs()
    free = system_memory() / GIB
    if jobs > 1 and free < jobs * COMPILER_GIB:
        message = f'{jobs} compilers can take {jobs * COMPILER_GIB} GiB of memory, and {free:.1f} GiB are free'
        yield message, 'MAX_JOBS=1 make env'
    places = {'VENV': ROOT, 'UV_CACHE_DIR': env.get('UV_CACHE_DIR') or Path.home(), 'TMPDIR': tempfile.gettempdir()}
    for name, folder in places.items():
        space = shutil.disk_usage(folder).free / GIB if Path(folder).exists() else ENVIRONMENT_GIB
        if space < ENVIRONMENT_GIB:
            message = f'an environment takes up to {ENVIRONMENT_GIB} GiB, and {space:.1f} GiB are free in {folder}'
            yield message, f'make env {name}=FOLDER, on another disk'
    if find_spec('torch') is not None:
        import torch

        problem = mmcv_target(torch.version.cuda, env)[1]
        if problem:
            yield f'no operators for the GPU: {problem}', 'FORCE_CUDA=0 make env, for operators on the CPU only'


# ----------------------------------------------------------------------------------------------------
# The machine
# ----------------------------------------------------------------------------------------------------


def check_gpu() -> Iterator[Result]:
    """Which GPUs torch can use, and whether there are some that it cannot."""
    if find_spec('torch') is None:
        return
    import torch

    cuda = torch.version.cuda
    if torch.cuda.is_available():
        try:
            torch.ones(1, device='cuda').add_(1)
        except torch.OutOfMemoryError as error:
            fix = 'end the programs that fill it, which nvidia-smi names, or take another: CUDA_VISIBLE_DEVICES=NUMBER'
            yield Result(FAIL, f'its memory is full: {in_a_line(error)}', fix)
        except RuntimeError as error:  # torch was built without code for this generation of GPUs
            yield Result(FAIL, f'torch {torch.__version__} cannot compute on it: {in_a_line(error)}', install_torch())
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            memory = f'{properties.total_memory / GIB:.0f} GiB'
            yield Result(OK, f'{properties.name}, {memory}, compute capability {properties.major}.{properties.minor}')
        return
    if not visible_gpus(dict(os.environ)):
        yield Result(NOTE, 'none: training runs on the CPU, many times slower')
        return
    built = f'is for CUDA {cuda}: the driver may be too old for that' if cuda else 'is built without CUDA'
    yield Result(FAIL, f'there is one that torch {torch.__version__} cannot use; it {built}', install_torch())


def install_torch() -> str:
    """How to install torch for the CUDA toolkit that is here, else for one that most drivers can run."""
    tag = 'cu' + (nvcc_version(dict(os.environ)) or '12.6').replace('.', '')
    return f'{PIP} install --force-reinstall torch torchvision --index-url URL, that of {tag} in {TORCH_WHEELS}'


def check_attention() -> Iterator[Result]:
    """Which of PyTorch's attention kernels run here that never hold the matrix of queries x keys."""
    if find_spec('torch') is None:
        return
    import torch
    from torch.nn.attention import SDPBackend

    on_gpu = torch.cuda.is_available()
    device = 'cuda' if on_gpu else 'cpu'
    kernels = {'flash in bfloat16': (SDPBackend.FLASH_ATTENTION, torch.bfloat16)}
    if on_gpu:
        kernels |= {
            'flash in float16': (SDPBackend.FLASH_ATTENTION, torch.float16),
            'memory-efficient in float32': (SDPBackend.EFFICIENT_ATTENTION, torch.float32),
        }
    else:
        kernels |= {'flash in float32': (SDPBackend.FLASH_ATTENTION, torch.float32)}
    runs = {name: kernel_runs(backend, dtype, device) for name, (backend, dtype) in kernels.items()}
    if not any(works for name, works in runs.items() if 'float32' in name):
        message = 'no fused kernel runs in float32: memory grows with the square of the image'
        yield Result(FAIL, message, install_torch())
    for word, status in ((True, OK), (False, NOTE)):
        names = ', '.join(name for name, works in runs.items() if works is word)
        if names:
            yield Result(status, f'{"runs" if word else "does not run"}: {names}')


def kernel_runs(backend: Any, dtype: Any, device: str) -> bool:
    """Whether a kernel of attention runs, on heads of the width that CvT's have."""
    import torch
    from torch.nn.attention import sdpa_kernel

    x = torch.ones(1, 1, 16, 64, dtype=dtype, device=device)
    try:
        with sdpa_kernel(backend):
            torch.nn.functional.scaled_dot_product_attention(x, x, x)
    except RuntimeError:  # 'No available kernel'
        return False
    return True


def available_memory() -> tuple[int, str]:
    """Bytes that a run can still take, and of what: the GPU's memory, or the system's."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0], 'GPU memory'
    return system_memory(), 'system memory'


def system_memory() -> int:
    """Bytes of the system's memory that are free, within a container's limit."""
    found = re.search(r'^MemAvailable:\s+(\d+) kB', Path('/proc/meminfo').read_text(), re.MULTILINE)
    available = int(found[1]) * 1024
    limit, used = (Path('/sys/fs/cgroup') / f'memory.{name}' for name in ('max', 'current'))
    if limit.is_file() and limit.read_text().strip().isdigit():
        available = min(available, int(limit.read_text()) - int(used.read_text()))
    return available
