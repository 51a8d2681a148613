"""The doctor on this machine, and on machines and configs in which one thing is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import doctor
import doctor_machine as machine
import huggingface_hub
import numpy as np
import pytest
import torch
from advice import obey
from doctor import Check, Result
from doctor_machine import FAIL, NOTE, OK, PACKAGES, Package
from golden import TINY
from mmengine.config import Config
from paths import ROOT
from PIL import Image
from tool_processes import run_tool

from cvt_dense import CvTTrunk

DETECTION, SEGMENTATION = 'configs/maskrcnn_cvt13_fpn_coco.py', 'configs/upernet_cvt13_ade20k.py'
BY_MODULE = {package.module: package for package in PACKAGES}

GIVEN = doctor.Given('c.py')


def only(results: Iterator[Result]) -> Result:
    """The one result of a check; a failure has to say what fixes it, and all has to fit on a line."""
    (result,) = results
    assert '\n' not in result.text + result.fix
    assert bool(result.fix) == (result.status == FAIL)
    return result


def assert_fails(results: Iterator[Result], text: str, fix: str) -> None:
    result = only(results)
    assert result.status == FAIL
    assert text in result.text
    assert fix in result.fix


def run(*arguments: object, env: dict[str, str] | None = None, code: str = '') -> subprocess.CompletedProcess[str]:
    """Run the tool from the root of the checkout, after some code; its output as text."""
    tool = str(ROOT / 'tools' / 'doctor.py')
    if not code:
        return run_tool([tool, *arguments], env=os.environ | (env or {}))
    start = f'{code}\nimport runpy, sys\nsys.argv = {[tool, *map(str, arguments)]!r}\n'
    start += f'sys.path.insert(0, {str(ROOT / "tools")!r})\nrunpy.run_path(sys.argv[0], run_name="__main__")'
    return subprocess.run(
        [sys.executable, '-c', start],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def lines_of(output: str) -> dict[str, str]:
    """The lines of a report, by the name of the check."""
    return {line[6:21].strip(): line for line in output.splitlines() if line.startswith(('ok ', 'note ', 'FAIL '))}


@pytest.fixture
def distributions(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What seems to be installed, with versions; to be filled by the test."""
    versions: dict[str, str] = {}
    for module in BY_MODULE:
        importlib.import_module(module)  # some look their own version up

    def version(name: str) -> str:
        if name not in versions:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, 'version', version)
    return versions


# ----------------------------------------------------------------------------------------------------
# Reports
# ----------------------------------------------------------------------------------------------------


def broken() -> Iterator[Result]:
    print('noise of a package')
    raise ZeroDivisionError('one\ntwo')
    yield


def test_a_check_that_breaks_is_a_failure_and_the_rest_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    checks = [Check('first', broken), Check('second', lambda: iter([Result(NOTE, 'all right')]))]
    assert doctor.report(checks) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith('FAIL  first           unexpected ZeroDivisionError: one; to fix it: ')
    assert second == 'note  second          all right'
    assert last == '1 failed'


def test_only_failures_make_the_exit_code_1() -> None:
    assert doctor.report([Check('a', lambda: iter([Result(OK, ''), Result(NOTE, '')]))]) == 0
    assert doctor.report([Check('a', lambda: iter([Result(OK, ''), Result(FAIL, '', 'this')]))]) == 1


@pytest.mark.parametrize('no_color', [False, True])
def test_colours_are_for_terminals_alone(monkeypatch: pytest.MonkeyPatch, no_color: bool) -> None:
    monkeypatch.delenv('NO_COLOR', raising=False)
    if no_color:
        monkeypatch.setenv('NO_COLOR', '1')
    for is_terminal in (False, True):
        out = io.StringIO()
        out.isatty = lambda is_terminal=is_terminal: is_terminal
        monkeypatch.setattr(sys, 'stdout', out)
        doctor.report([Check('a', lambda: iter([Result(FAIL, 'text', 'this')]))])
        monkeypatch.undo()
        assert ('\x1b[31mFAIL' in out.getvalue()) == (is_terminal and not no_color)
        assert 'FAIL' in out.getvalue()
        monkeypatch.setenv('NO_COLOR', '1') if no_color else monkeypatch.delenv('NO_COLOR', raising=False)


def test_a_missing_or_unreadable_config_is_a_mistake_of_the_user(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('LOCAL_RANK', '0')  # which reading a config sets, and is set back here
    (tmp_path / 'bad.py').write_text('model = (')
    for path, told in (('nope.py', 'does not exist'), ('bad.py', 'cannot be read: SyntaxError')):
        assert doctor.main([str(tmp_path / path)]) == 2
        captured = capsys.readouterr()
        assert captured.out == ''
        assert captured.err.startswith(f'error: config {tmp_path / path} {told}')
        assert captured.err.count('\n') == 1


# ----------------------------------------------------------------------------------------------------
# Packages
# ----------------------------------------------------------------------------------------------------


def test_this_environment_is_all_right() -> None:
    result = run()
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith('nothing failed\n')
    lines = lines_of(result.stdout)
    assert set(BY_MODULE) | {
        'python',
        'setuptools',
        'pair',
        'stack',
        'mmcv operators',
        'compiling',
        'gpu',
        'attention',
    } == set(lines)
    assert len(result.stdout.splitlines()) >= len(lines) + 1
    assert '\x1b' not in result.stdout


HIDE = """
import importlib.abc, importlib.metadata, importlib.util, sys
hidden = {!r}
class Hide(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in hidden:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Hide())
find, version = importlib.util.find_spec, importlib.metadata.version
importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] in hidden else find(name, *a)
def hide_version(name):
    if name.removeprefix('onedl-') in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = hide_version
"""


@pytest.mark.parametrize('hidden', [('torch',), ('timm',), ('mmengine',), ('torch', 'torchvision', 'timm', 'mmcv')])
def test_missing_packages_are_what_it_reports(hidden: tuple[str, ...], tmp_path: Path) -> None:
    result = run(DETECTION, code=HIDE.format(hidden), env={'COCO_ROOT': str(tmp_path)})
    assert result.returncode == 1, result.stderr
    assert 'Traceback' not in result.stdout + result.stderr
    lines = lines_of(result.stdout)
    for module in hidden:
        assert re.match(rf'FAIL +{module} +is not installed; to fix it: .*pip install -U .*{module}>=', lines[module])
    assert re.match(r'FAIL +config +cannot be checked: \w+Error: .*; to fix it: see the lines above', lines['config'])
    assert 'python' in lines
    assert 'setuptools' in lines


def test_without_cvt_dense_it_says_how_to_install_it() -> None:
    result = run(DETECTION, code=HIDE.format(('cvt_dense',)))
    assert result.returncode == 1
    assert f"pip install --no-deps --no-build-isolation -e '{ROOT}'" in lines_of(result.stdout)['config']


def test_minimum_versions_are_those_of_pyproject_toml() -> None:
    strings = re.findall(r"'(.+?)'", (ROOT / 'pyproject.toml').read_text())
    for package in PACKAGES:
        for name, version in package.minimum.items():
            if name not in ('torch', 'torchvision', 'mmengine-lite', 'mmcv-lite'):
                assert f'{name}>={version}' in strings
    assert f'setuptools<{machine.SETUPTOOLS_BELOW}' in strings


@pytest.mark.parametrize(
    ('text', 'numbers'), [('2.11.0+cu130', (2, 11, 0)), ('2.0.0rc4', (2, 0, 0)), ('0.26', (0, 26)), ('dev', ())]
)
def test_versions_are_compared_by_their_numbers(text: str, numbers: tuple[int, ...]) -> None:
    assert machine.release(text) == numbers


@pytest.mark.parametrize(
    ('module', 'name', 'old'),
    [
        ('torch', 'torch', '2.5.1+cu121'),
        ('timm', 'timm', '1.0.19'),
        ('mmengine', 'mmengine', '0.9.1'),
        ('mmcv', 'onedl-mmcv', '2.2.9'),
        ('mmdet', 'mmdet', '2.28.2'),
    ],
)
def test_a_package_that_is_too_old(module: str, name: str, old: str, distributions: dict[str, str]) -> None:
    distributions[name] = old
    wanted = BY_MODULE[module].minimum[name]
    assert_fails(machine.check_package(BY_MODULE[module], set()), f'{old} is too old', f"'{name}>={wanted}'")
    distributions[name] = wanted
    assert only(machine.check_package(BY_MODULE[module], set())).status == OK


def test_a_toolkit_that_the_config_does_not_need_may_be_missing(distributions: dict[str, str]) -> None:
    package = Package('no_such_toolkit', {'onedl-no': '1.0'}, 'mmdet')
    assert only(machine.check_package(package, {'mmseg'})).status == NOTE
    assert_fails(machine.check_package(package, {'mmdet'}), 'is not installed', "install -U 'onedl-no>=1.0'")


def test_the_stack_that_is_there_decides_what_to_install(distributions: dict[str, str]) -> None:
    assert "'onedl-mmengine>=0.10.8'" in machine.how_to_install(BY_MODULE['mmengine'])
    distributions['mmcv'] = '2.1.0'
    assert "'mmengine>=0.10'" in machine.how_to_install(BY_MODULE['mmengine'])
    assert '--no-build-isolation' in machine.how_to_install(BY_MODULE['mmcv'])


def test_a_package_that_pip_did_not_install_is_worth_a_note(distributions: dict[str, str]) -> None:
    assert 'which pip did not install' in only(machine.check_package(BY_MODULE['numpy'], set())).text


@pytest.mark.parametrize(
    ('error', 'fix'),
    [
        (ModuleNotFoundError("No module named 'torch'", name='torch'), "install -U 'torch>=2.6'"),
        (ModuleNotFoundError("No module named 'addict'", name='addict'), 'install addict'),
        (ImportError('libGL.so.1: cannot open shared object file'), 'opencv-python-headless'),
        (
            AssertionError('MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'),
            "'mmcv>=2.0.0rc4,<2.2.0'",
        ),
        (OSError('libcudart.so.13: cannot open shared object file'), "'onedl-mmdetection>=3.5' --force-reinstall"),
    ],
)
def test_a_package_that_cannot_be_imported(
    error: Exception, fix: str, distributions: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise error

    distributions['onedl-mmdetection'] = '3.5.1'
    monkeypatch.setattr(importlib, 'import_module', fail)
    told = f'is installed and cannot be imported: {type(error).__name__}: {error}'
    assert_fails(machine.check_package(BY_MODULE['mmdet'], set()), told, fix)


def test_setuptools_without_pkg_resources(distributions: dict[str, str]) -> None:
    assert_fails(machine.check_setuptools(), 'is not installed', "'setuptools<81'")
    distributions['setuptools'] = '82.0.1'
    assert_fails(machine.check_setuptools(), '82.0.1 lacks pkg_resources', "'setuptools<81'")
    distributions['setuptools'] = '80.9'
    assert only(machine.check_setuptools()).status == OK


@pytest.mark.parametrize(('version', 'status'), [((3, 9, 2), FAIL), ((3, 12, 1), OK), ((3, 14, 0), NOTE)])
def test_pythons(version: tuple[int, ...], status: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, 'version_info', version)
    assert only(machine.check_python()).status == status


def test_torchvision_has_to_be_that_of_torch(distributions: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision.ops

    assert list(machine.check_torchvision_pair()) == []
    distributions |= {'torch': '2.7.1', 'torchvision': '0.21.0'}
    assert_fails(machine.check_torchvision_pair(), 'do not belong together', "'torchvision==0.22.*'")
    distributions['torchvision'] = '0.22.1'
    assert only(machine.check_torchvision_pair()).status == OK

    def not_there(*args: object) -> None:
        raise RuntimeError('operator torchvision::nms does not exist\nsecond line')

    monkeypatch.setattr(torchvision.ops, 'nms', not_there)
    told = 'do not work together: RuntimeError: operator torchvision::nms does not exist'
    assert_fails(machine.check_torchvision_pair(), told, "'torchvision==0.22.*'")


def test_both_stacks_at_once_are_an_error(distributions: dict[str, str]) -> None:
    assert list(machine.check_stack()) == []
    distributions |= {'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6'}
    assert only(machine.check_stack()).text == 'all of the OneDL fork'
    distributions['mmdet'] = '3.3.0'
    assert_fails(
        machine.check_stack(), 'onedl-mmengine, onedl-mmcv, mmdet', 'uninstall -y onedl-mmengine onedl-mmcv mmdet'
    )
    distributions.clear()
    distributions |= {'mmengine': '0.10.7', 'mmcv': '2.1.0'}
    assert only(machine.check_stack()).text == 'all of OpenMMLab'


@pytest.mark.parametrize(
    ('mmcv', 'ops', 'told'),
    [
        ('onedl-mmcv', 'raise ImportError("undefined symbol: _ZN3c10")', 'undefined symbol: _ZN3c10'),
        ('mmcv', 'import os, signal; os.kill(os.getpid(), signal.SIGSEGV)', 'the process ended with -11'),
        ('onedl-mmcv', 'nms = lambda boxes, scores, overlap: (None, scores[:1])', 'mmcv.ops.nms kept'),
    ],
)
def test_operators_of_another_torch(
    mmcv: str,
    ops: str,
    told: str,
    distributions: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    distributions[mmcv] = '2.1.0'
    (tmp_path / 'mmcv' / 'ops').mkdir(parents=True)
    (tmp_path / 'mmcv' / '__init__.py').touch()
    (tmp_path / 'mmcv' / 'ops' / '__init__.py').write_text(ops)
    monkeypatch.setenv('PYTHONPATH', str(tmp_path))
    assert_fails(machine.check_mmcv_operators(), told, f'--no-binary {mmcv} {mmcv}')


def test_operators_without_cuda_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmcv.ops

    if mmcv.ops.get_compiling_cuda_version() != 'not available':
        pytest.skip('mmcv was built with CUDA')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert_fails(machine.check_mmcv_operators(), 'mmcv was built without CUDA', 'FORCE_CUDA=1 MMCV_WITH_OPS=1')


#: What stops mmcv from being compiled: the attribute of a module that shows it, what it is then, and what is told.
CANNOT_COMPILE: dict[str, tuple[object, str, Callable[..., object], str, str]] = {
    'compiler': (shutil, 'which', lambda name: None, 'no C++ compiler', 'apt install g++'),
    'headers': (sysconfig, 'get_path', lambda name: '/nowhere', 'headers were not found', '-dev'),
    'memory': (machine, 'system_memory', lambda: 3 * machine.GIB, '2 compilers can take 4 GiB', 'MAX_JOBS=1 make env'),
    'disk': (shutil, 'disk_usage', lambda folder: SimpleNamespace(free=machine.GIB), '1.0 GiB are free', 'VENV=FOLDER'),
    'toolkit': (machine, 'mmcv_target', lambda cuda, env: ('cpu', 'nvcc was not found'), 'nvcc', 'FORCE_CUDA=0'),
}


@pytest.mark.parametrize('case', CANNOT_COMPILE)
def test_what_stops_mmcv_from_being_compiled(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, name, value, told, fix = CANNOT_COMPILE[case]
    monkeypatch.setenv('MAX_JOBS', '2')
    monkeypatch.setattr(machine, 'system_memory', lambda: 8 * machine.GIB)
    monkeypatch.setattr(shutil, 'disk_usage', lambda folder: SimpleNamespace(free=99 * machine.GIB))
    monkeypatch.setattr(machine, 'mmcv_target', lambda cuda, env: ('cpu', ''))
    assert only(machine.check_compiling()).status == OK
    monkeypatch.setattr(module, name, value)
    first, *_ = machine.check_compiling()  # mmcv is compiled here already
    assert first.status == NOTE
    assert told in first.text
    assert fix in first.text
    monkeypatch.setattr(machine, 'find_spec', lambda name: None if name == 'mmcv' else find_spec(name))
    first, *_ = machine.check_compiling()
    assert_fails(iter([first]), told, fix)


@pytest.mark.parametrize(
    ('variables', 'gpus', 'nvcc', 'target', 'problem'),
    [
        ({}, [], '13.0', 'cpu', ''),
        ({'FORCE_CUDA': '0'}, ['9.0'], '13.0', 'cpu', ''),
        ({}, ['9.0'], '13.1', 'cuda-13.1-9.0', ''),
        ({'FORCE_CUDA': '1'}, [], '13.0', 'cuda-13.0-all', ''),
        ({'TORCH_CUDA_ARCH_LIST': '8.0;9.0'}, ['9.0'], '13.0', 'cuda-13.0-8.0;9.0', ''),
        ({}, ['9.0'], None, 'cpu', 'nvcc was not found: install the CUDA toolkit 13.0'),
        ({'FORCE_CUDA': '1'}, [], '12.4', 'cpu', 'nvcc is of CUDA 12.4 and torch of CUDA 13.0'),
    ],
)
def test_what_mmcv_is_built_for(
    variables: dict[str, str],
    gpus: list[str],
    nvcc: str | None,
    target: str,
    problem: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, 'visible_gpus', lambda env: gpus)
    monkeypatch.setattr(machine, 'nvcc_version', lambda env: nvcc)
    found = machine.mmcv_target('13.0', variables)
    assert found[0] == target
    assert found[1].startswith(problem)
    assert bool(found[1]) == bool(problem)


# ----------------------------------------------------------------------------------------------------
# The machine
# ----------------------------------------------------------------------------------------------------


def test_a_gpu_that_torch_cannot_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(machine, 'visible_gpus', lambda env: [])
    assert only(machine.check_gpu()).status == NOTE
    monkeypatch.setattr(machine, 'visible_gpus', lambda env: ['9.0'])
    monkeypatch.setattr(machine, 'nvcc_version', lambda env: '12.8')
    for cuda, told in (('13.0', 'is for CUDA 13.0'), (None, 'is built without CUDA')):
        monkeypatch.setattr(torch.version, 'cuda', cuda)
        assert_fails(machine.check_gpu(), told, '--index-url URL, that of cu128')


def test_a_gpu_that_torch_has_no_code_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*args: object, **settings: object) -> None:
        raise RuntimeError('CUDA error: no kernel image is available for execution on the device')

    properties = SimpleNamespace(name='A GPU', total_memory=8 * machine.GIB, major=3, minor=5)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda index: properties)
    monkeypatch.setattr(torch, 'ones', no_kernel)
    failure, named = machine.check_gpu()
    assert_fails(iter([failure]), 'no kernel image is available', 'pytorch.org/get-started')
    assert named == Result(OK, 'A GPU, 8 GiB, compute capability 3.5')


def test_a_gpu_whose_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **settings: object) -> None:
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(torch, 'ones', full)
    assert_fails(machine.check_gpu(), 'its memory is full', 'CUDA_VISIBLE_DEVICES=NUMBER')


def test_attention_without_a_fused_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, 'kernel_runs', lambda backend, dtype, device: False)
    failure, note = machine.check_attention()
    assert_fails(iter([failure]), 'no fused kernel runs in float32', 'pip install')
    assert note.status == NOTE
    monkeypatch.setattr(machine, 'kernel_runs', lambda backend, dtype, device: dtype == torch.float32)
    assert [result.status for result in machine.check_attention()] == [OK, NOTE]


def test_a_kernel_that_does_not_run_is_told_from_one_that_does() -> None:
    from torch.nn.attention import SDPBackend

    assert machine.kernel_runs(SDPBackend.FLASH_ATTENTION, torch.float32, 'cpu')
    assert not machine.kernel_runs(SDPBackend.CUDNN_ATTENTION, torch.float32, 'cpu')


def test_available_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    available, kind = machine.available_memory()
    assert kind == 'system memory'
    assert 2**20 < available < os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda: (5, 9))
    assert machine.available_memory() == (5, 'GPU memory')


# ----------------------------------------------------------------------------------------------------
# Configs
# ----------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A checkpoint of a small backbone."""
    torch.save(CvTTrunk(TINY).state_dict(), tmp_path / 'tiny.pth')
    return tmp_path / 'tiny.pth'


@pytest.mark.parametrize(
    ('base', 'variable', 'folder'), [(DETECTION, 'COCO_ROOT', 'coco_mini'), (SEGMENTATION, 'ADE20K_ROOT', 'ade_mini')]
)
def test_real_configs_and_data_are_all_right(
    base: str, variable: str, folder: str, data: Path, tiny: Path, tmp_path: Path
) -> None:
    arch = f'dict(_delete_=True, **{TINY!r})'
    backbone = f'dict(arch={arch}, init_cfg=dict(checkpoint={str(tiny)!r}))'
    part = 'neck' if variable == 'COCO_ROOT' else 'decode_head'
    aside = '' if part == 'neck' else ', auxiliary_head=dict(in_channels=96)'
    config = tmp_path / 'config.py'
    config.write_text(
        f'_base_ = {str(ROOT / base)!r}\n'
        f'model = dict(backbone={backbone}, {part}=dict(in_channels=[16, 48, 96]){aside})'
    )
    result = run(config, env={variable: str(data / folder)})
    assert result.returncode == 0, result.stdout + result.stderr
    lines = lines_of(result.stdout)
    for name in ('train data', 'val data', 'classes', 'checkpoint'):
        assert lines[name].startswith('ok '), lines[name]
    assert 'an estimated' in lines['memory']
    assert '--auto-scale-lr' in lines['learning rate']
    assert 'OneDL' not in result.stdout.replace('the OneDL fork', '')


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """A data set of two classes in COCO's format, with one image."""
    root = tmp_path / 'data'
    (root / 'train').mkdir(parents=True)
    Image.new('RGB', (32, 24)).save(root / 'train' / 'a.jpg')
    write_coco(root)
    return root


def write_coco(root: Path, **changes: object) -> None:
    content = dict(
        images=[dict(id=1, file_name='a.jpg', width=32, height=24)],
        annotations=[dict(id=1, image_id=1, category_id=7, bbox=[1, 1, 9, 9], area=81, iscrowd=0)],
        categories=[dict(id=3, name='cat'), dict(id=7, name='dog')],
    )
    (root / 'train.json').write_text(json.dumps(content | changes))


def detector(root: Path, classes: tuple[str, ...] = ('cat', 'dog'), num_classes: int = 2) -> Config:
    """A config of a detector on that data."""
    dataset = dict(
        type='CocoDataset',
        data_root=str(root),
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        metainfo=dict(classes=classes),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)],
    )
    head = dict(type='RetinaHead', num_classes=num_classes)
    return Config(
        dict(
            default_scope='mmdet',
            data_hint='set CUSTOM_ROOT=DIR',
            model=dict(backbone=dict(type='CvT', arch=TINY), bbox_head=head),
            train_dataloader=dict(batch_size=2, dataset=dict(type='RepeatDataset', times=2, dataset=dataset)),
            optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.1)),
        )
    )


def test_data_in_cocos_format(coco: Path) -> None:
    result = only(doctor.check_data(detector(coco), GIVEN, 'train'))
    assert result == Result(OK, '1 images, 1 of them opened')
    content = json.loads((coco / 'train.json').read_text())
    write_coco(coco, annotations=[*content['annotations'], content['annotations'][0] | dict(id=2, area=0)])
    told = only(doctor.check_data(detector(coco), GIVEN, 'train')).text
    assert told.endswith('annotations skipped because their area is 0 or a side of their box is below a pixel: 1')


#: How the data are broken, what is told, and what is said to cure it.
BREAK_COCO: dict[str, tuple[Callable[[Path], object], str, str]] = {
    'no root': (shutil.rmtree, 'does not exist', 'set CUSTOM_ROOT=DIR'),
    'no file': (
        lambda root: (root / 'train.json').unlink(),
        'train.json does not exist',
        'set CUSTOM_ROOT=DIR, or --cfg-options train_dataloader.dataset.dataset.ann_file=FILE',
    ),
    'no images': (
        lambda root: (root / 'train' / 'a.jpg').unlink(),
        'train is empty',
        'set CUSTOM_ROOT=DIR, or --cfg-options train_dataloader.dataset.dataset.data_prefix.img=FOLDER',
    ),
    'no JSON': (
        lambda root: (root / 'train.json').write_text('{"images": ['),
        'train.json is not valid JSON: Expecting value',
        "export it again, in COCO's format",
    ),
    'no COCO': (lambda root: (root / 'train.json').write_text('[]'), "is not in COCO's format", 'export it again'),
    'other names': (
        lambda root: write_coco(root, categories=[dict(id=3, name='Cat')]),
        "has no category 'cat'",
        'c.py --cfg-options train_dataloader.dataset.dataset.metainfo.classes="[Cat]"',
    ),
    'no annotation': (
        lambda root: write_coco(root, annotations=[]),
        'has no annotation of the classes cat, dog',
        'write annotations into it',
    ),
    'other image': (
        lambda root: (root / 'train' / 'a.jpg').rename(root / 'train' / 'b.jpg'),
        'a.jpg does not exist',
        'put them there, or --cfg-options train_dataloader.dataset.dataset.data_prefix.img=FOLDER',
    ),
    'cut image': (
        lambda root: (root / 'train' / 'a.jpg').write_bytes(b'\xff\xd8\xff'),
        'a.jpg is damaged',
        'replace it, or remove image 1 from the data',
    ),
}


@pytest.mark.parametrize('case', BREAK_COCO)
def test_broken_data_in_cocos_format(case: str, coco: Path) -> None:
    break_it, told, fix = BREAK_COCO[case]
    break_it(coco)
    assert_fails(doctor.check_data(detector(coco), GIVEN, 'train'), told, fix)


def test_a_data_set_that_cannot_be_built_is_named(coco: Path) -> None:
    cfg = detector(coco)
    cfg.train_dataloader.dataset.dataset.ann_fil = 'a'
    told = 'CocoDataset cannot be built: TypeError'
    assert_fails(doctor.check_data(cfg, GIVEN, 'train'), told, 'correct its settings in the config')


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """A data set of label maps of three classes, with one image."""
    root = tmp_path / 'data'
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    Image.new('RGB', (32, 24)).save(root / 'images' / 'a.jpg')
    write_labels(root, [0, 1, 2, 255])
    return root


def write_labels(root: Path, values: list[int], shape: tuple[int, ...] = (24, 32)) -> None:
    Image.fromarray(np.resize(np.array(values, np.uint8), shape)).save(root / 'labels' / 'a.png')


def segmentor(root: Path, reduce_zero_label: bool = False) -> Config:
    """A config of a segmentor on that data."""
    dataset = dict(
        type='BaseSegDataset',
        data_root=str(root),
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        metainfo=dict(classes=('sky', 'sea', 'sand')),
        reduce_zero_label=reduce_zero_label,
        pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')],
    )
    heads = dict(decode_head=dict(num_classes=3), auxiliary_head=[dict(num_classes=3), dict(num_classes=3)])
    return Config(dict(default_scope='mmseg', model=heads, train_dataloader=dict(batch_size=2, dataset=dataset)))


def test_label_maps(labels: Path) -> None:
    result = only(doctor.check_data(segmentor(labels), GIVEN, 'train'))
    assert result == Result(OK, '1 images, 1 of them opened')
    write_labels(labels, [0, 1, 2, 3, 255])
    assert only(doctor.check_data(segmentor(labels, reduce_zero_label=True), GIVEN, 'train')).status == OK


BREAK_LABELS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    'values': (
        lambda root: write_labels(root, [0, 4]),
        'has the value 4, and the labels of 3 classes are 0 to 2',
        'write 255 in place of values that are no class, or name all classes: set metainfo.classes = (NAME, …) in',
    ),
    'values from 1': (
        lambda root: write_labels(root, [1, 3]),
        'has the value 3, and the labels of 3 classes are 0 to 2',
        'if 0 is "unlabelled": --cfg-options train_dataloader.dataset.reduce_zero_label=True; else write 255',
    ),
    'colours': (
        lambda root: write_labels(root, [0, 1], (24, 32, 3)),
        'is a colour picture',
        'it has to have one channel, of class numbers',
    ),
    'size': (
        lambda root: write_labels(root, [0, 1], (24, 30)),
        'is 30x24, its image 32x24',
        "write it in its image's size",
    ),
    'no map': (
        lambda root: (root / 'labels' / 'a.png').rename(root / 'labels' / 'b.png'),
        'a.png does not exist',
        'put them there, or --cfg-options train_dataloader.dataset.data_prefix.seg_map_path=FOLDER',
    ),
    'another suffix of maps': (
        lambda root: (root / 'labels' / 'a.png').rename(root / 'labels' / 'a.tif'),
        'a.png does not exist',
        'c.py --cfg-options train_dataloader.dataset.seg_map_suffix=.tif',
    ),
    'no image': (
        lambda root: (root / 'images' / 'a.jpg').rename(root / 'images' / 'a.jpeg'),
        'holds no file *.jpg',
        'c.py --cfg-options train_dataloader.dataset.img_suffix=.jpeg',
    ),
}


@pytest.mark.parametrize('case', BREAK_LABELS)
def test_broken_label_maps(case: str, labels: Path) -> None:
    break_it, told, fix = BREAK_LABELS[case]
    break_it(labels)
    cfg = segmentor(labels)
    failure = only(doctor.check_data(cfg, GIVEN, 'train'))
    assert_fails(iter([failure]), told, fix)
    if 'FOLDER' not in fix and '--cfg-options' in fix:
        cfg.merge_from_dict(doctor.parsed(tuple(obey(failure.fix, labels))))
        assert only(doctor.check_data(cfg, GIVEN, 'train')).status == OK


def test_labels_from_1_on(labels: Path) -> None:
    write_labels(labels, [0, 1, 4])
    results = doctor.check_data(segmentor(labels, reduce_zero_label=True), GIVEN, 'train')
    assert_fails(results, 'has the value 4, and the labels of 3 classes are 1 to 3', 'write 255 in place of values')


def test_a_test_split_is_looked_at_if_it_is_ones_own(coco: Path) -> None:
    cfg = detector(coco)
    assert doctor.splits_of(cfg) == ['train']
    loader = dict(cfg.train_dataloader.to_dict())
    cfg.merge_from_dict(
        dict(val_cfg=dict(), test_cfg=dict(type='TestLoop'), val_dataloader=loader, test_dataloader=loader)
    )
    cfg.val_cfg = dict(type='ValLoop')
    assert doctor.splits_of(cfg) == ['train', 'val']
    cfg.test_dataloader.dataset.dataset.ann_file = 'test.json'
    assert doctor.splits_of(cfg) == ['train', 'val', 'test']
    results = doctor.check_data(cfg, GIVEN, 'test')
    assert_fails(results, 'test.json does not exist', 'test_dataloader.dataset.dataset.ann_file=FILE')


def test_heads_for_another_number_of_classes(coco: Path, labels: Path) -> None:
    assert only(doctor.check_classes(detector(coco), GIVEN)) == Result(OK, '2 in the data and in 1 heads')
    cfg = detector(coco, num_classes=80)
    options = '--cfg-options model.bbox_head.num_classes=2'
    assert_fails(
        doctor.check_classes(cfg, GIVEN), 'the data have 2, and the config model.bbox_head.num_classes=80', options
    )
    cfg = segmentor(labels)
    assert only(doctor.check_classes(cfg, GIVEN)).status == OK
    cfg.model.auxiliary_head[1].num_classes = 19
    failure = only(doctor.check_classes(cfg, GIVEN))
    assert_fails(iter([failure]), 'auxiliary_head.1', 'model.auxiliary_head.1.num_classes=3')
    cfg.merge_from_dict(doctor.parsed(tuple(obey(failure.fix, labels))))
    assert only(doctor.check_classes(cfg, GIVEN)).status == OK


def with_checkpoint(checkpoint: object, arch: object = TINY) -> Config:
    init_cfg = dict(type='Pretrained', checkpoint=str(checkpoint))
    return Config(dict(model=dict(backbone=dict(type='CvT', arch=arch, init_cfg=init_cfg))))


WAYS = 'model.backbone.init_cfg.checkpoint=PATH of one that fits, or with model.backbone.init_cfg=None for none'


def test_a_checkpoint_that_is_here_has_to_fit(tiny: Path) -> None:
    result = only(doctor.check_checkpoint(with_checkpoint(tiny), GIVEN))
    assert result.status == OK
    assert 'is here and fits' in result.text
    assert_fails(doctor.check_checkpoint(with_checkpoint(tiny, 'cvt-13'), GIVEN), 'does not fit', WAYS)
    tiny.write_bytes(b'no checkpoint')
    assert_fails(doctor.check_checkpoint(with_checkpoint(tiny), GIVEN), 'was refused', WAYS)
    assert_fails(doctor.check_checkpoint(with_checkpoint('nope.pth'), GIVEN), 'neither a file nor a known name', WAYS)


def test_a_checkpoint_that_nobody_serves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_OFFLINE', True)
    cfg = with_checkpoint('cvt-13-224x224-in1k', 'cvt-13')
    assert_fails(doctor.check_checkpoint(cfg, GIVEN), 'HF_HUB_OFFLINE forbids', WAYS)


@pytest.mark.parametrize('fault', ['nope.pth', 'no checkpoint'])
def test_what_is_said_of_a_checkpoint_cures_it(fault: str, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / 'nope.pth').write_bytes(b'nothing')
    cfg = with_checkpoint(tmp_path / 'nope.pth')
    if fault == 'no checkpoint':
        cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpont=str(tiny))
    failure = only(doctor.check_checkpoint(cfg, GIVEN))
    assert_fails(iter([failure]), fault if '.' in fault else 'init_cfg has an unknown key', WAYS)
    options = [word for word in failure.fix.replace('PATH', str(tiny)).split() if word.startswith('model.')]
    for chosen in (options[:-1], options[-1:]):
        copy = Config(cfg.to_dict())
        copy.merge_from_dict(doctor.parsed(tuple(chosen)))
        assert only(doctor.check_checkpoint(copy, GIVEN)).status == (NOTE if chosen == options[-1:] else OK)


def test_no_checkpoint_is_worth_a_note() -> None:
    cfg = Config(dict(model=dict(backbone=dict(type='CvT', init_cfg=None))))
    assert only(doctor.check_checkpoint(cfg, GIVEN)).status == NOTE


@pytest.mark.parametrize(('gib', 'status'), [(1, NOTE), (4, NOTE), (10, NOTE), (11, OK)])
def test_memory_that_looks_too_small_is_a_note_with_options(
    gib: int, status: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The estimate is of 6.2 GiB."""
    monkeypatch.setattr(machine, 'available_memory', lambda: (gib * machine.GIB, 'GPU memory'))
    cfg = Config.fromfile(ROOT / DETECTION)
    assert doctor.report([doctor.Check('memory', lambda: doctor.check_memory(cfg, GIVEN))]) == 0
    line, end = capsys.readouterr().out.splitlines()
    assert line.startswith(status)
    assert end == 'nothing failed'
    assert f'an estimated 6.2 GiB of the {gib}.0 GiB of GPU memory' in line
    assert '2 images of 800x1344' in line
    assert 'an estimate only, which was 0.6 to 0.9 of what measured steps took' in line
    options = 'tools/train.py c.py --amp --cfg-options model.backbone.with_cp=True train_dataloader.batch_size='
    assert (f'if memory runs out: {doctor.PYTHON} {options}' in line) == (status == NOTE)
    assert ('batch_size=1, with smaller images' in line) == (gib == 1)


def test_memory_that_cannot_be_estimated_is_a_note(coco: Path) -> None:
    cfg = detector(coco)
    result = only(doctor.check_memory(cfg, GIVEN))
    assert result.status == NOTE
    assert result.text == 'not estimated: the config does not say how large its images are'
    cfg.model.data_preprocessor = dict(size=(64, 64))
    result = only(doctor.check_memory(cfg, GIVEN))
    assert result.status == NOTE
    assert result.text.startswith('not estimated: UserError: the config cannot be built: KeyError'), 'it has no type'


def test_a_rate_for_another_batch_is_worth_a_note(coco: Path) -> None:
    cfg = detector(coco)
    assert 'auto_scale_lr.base_batch_size' in only(doctor.check_learning_rate(cfg, GIVEN)).text
    for base, enable, status in ((2, False, OK), (2, True, OK), (16, False, NOTE), (16, True, OK)):
        cfg.auto_scale_lr = dict(base_batch_size=base, enable=enable)
        result = only(doctor.check_learning_rate(cfg, GIVEN))
        assert result.status == status
        assert ('tools/train.py c.py --auto-scale-lr' in result.text) == (status == NOTE)
        assert ('start 8 processes, or' in result.text) == (status == NOTE)


@pytest.mark.parametrize(
    'name', ['maskrcnn_cvttiny_fpn_nuclei', 'maskrcnn_cvttiny_fpn_shapes', 'upernet_cvttiny_shapes']
)
def test_a_small_config_is_run_at_the_rate_that_it_has(name: str) -> None:
    assert only(doctor.check_learning_rate(Config.fromfile(ROOT / f'configs/{name}.py'), GIVEN)).status == OK


@pytest.mark.parametrize(
    ('name', 'images', 'options', 'said'),
    [
        (DETECTION, 118287, {}, '12 epochs of 59144 iterations; warm-up'),
        (DETECTION, 200, {}, 'still warming up in the first 1000 of 1200 iterations: --cfg-options'),
        (DETECTION, None, {}, '12 epochs; warm-up'),
        (DETECTION, 118287, {'train_cfg.max_epochs': 50}, 'is at its lowest in the other 38: --cfg-options'),
        (SEGMENTATION, 200, {}, '160000 iterations; warm-up'),
        ('configs/maskrcnn_cvt13_fpn_custom.py', 10, {}, '12 epochs of 5 iterations; warm-up'),
        ('configs/upernet_cvt13_custom.py', 10, {}, '20000 iterations; warm-up'),
    ],
)
def test_a_schedule_is_held_against_the_data(name: str, images: int | None, options: dict[str, int], said: str) -> None:
    cfg = Config.fromfile(ROOT / name)
    cfg.merge_from_dict(options)
    loaded = {} if images is None else dict(train=[range(images)])
    result = only(doctor.check_schedule(cfg, loaded))
    assert said in result.text
    assert result.status == (NOTE if '--cfg-options' in said else OK)


def test_anchors_are_held_against_the_objects(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('NUCLEI_ROOT', str(data / 'nuclei'))
    cfg = Config.fromfile(ROOT / 'configs/maskrcnn_cvttiny_fpn_nuclei.py')
    loaded: dict[str, list[object]] = {}
    cfg.train_dataloader.dataset.indices = 10
    assert list(doctor.check_objects(cfg, loaded)) == []  # their file may be wrong
    assert only(doctor.check_data(cfg, GIVEN, 'train', loaded)).status == OK
    assert 'pixels as the network sees them, in the median' in only(doctor.check_objects(cfg, loaded)).text
    cfg.model.rpn_head.anchor_generator['scales'] = [8]
    advised = only(doctor.check_objects(cfg, loaded))
    assert advised.status == NOTE
    cfg.merge_from_dict(doctor.parsed((re.search(r'--cfg-options (\S+),', advised.text)[1],)))
    assert only(doctor.check_objects(cfg, loaded)).status == OK


def test_a_segmentor_with_parts_of_mmdet_needs_both() -> None:
    assert doctor.scopes_of(Config.fromfile(ROOT / 'configs/mask2former_cvt13_ade20k.py')) == {'mmseg', 'mmdet'}
    assert doctor.scopes_of(Config.fromfile(ROOT / SEGMENTATION)) == {'mmseg'}


def test_commands_carry_what_the_user_overrides() -> None:
    given = doctor.Given('c.py', ('data_root=a b', 'x=1'))
    assert given.command('train', 'y=2', flags='--amp') == (
        f"{doctor.PYTHON} tools/train.py c.py --amp --cfg-options 'data_root=a b' x=1 y=2"
    )
    assert GIVEN.command('doctor') == f'{doctor.PYTHON} tools/doctor.py c.py'


def test_a_config_is_looked_at_as_a_run_would_have_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also where it lacks a part."""
    (tmp_path / 'c.py').write_text(f"_base_ = '{ROOT}/configs/maskrcnn_cvttiny_fpn_shapes.py'\n")
    arguments = [str(tmp_path / 'c.py'), '--cfg-options']
    assert doctor.main([*arguments, f'train_dataloader.dataset.data_root={tmp_path}/nowhere']) == 1
    assert f'data root {tmp_path}/nowhere does not exist' in capsys.readouterr().out
    assert doctor.main([*arguments, 'optim_wrapper=None']) == 1
    printed = capsys.readouterr().out
    told = 'the config sets no optim_wrapper, which training needs; to fix it: copy it from '
    (file,) = re.findall(f'{told}(\\S+)', printed)
    assert Config.fromfile(ROOT / file).optim_wrapper
    assert doctor.main([*arguments, 'modle.x=1']) == 2
    with pytest.raises(SystemExit):
        doctor.main(['--cfg-options', 'a=1'])
