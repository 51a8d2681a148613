"""The set-up tool's own logic, without a network or a compiler, and what a built wheel holds."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tool() -> ModuleType:
    """Import ``tools/setup_env.py``, which is a script and in no package."""
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


tool = load_tool()


@pytest.mark.parametrize(('seconds', 'text'), [(0, '0:00'), (67.9, '1:07'), (754, '12:34'), (3723, '1:02:03')])
def test_clock(seconds, text):
    assert tool.clock(seconds) == text


@pytest.mark.parametrize(
    ('line', 'news'),
    [
        ('  [12/78] c++ -MMD -MF /tmp/x/nms.o.d -g0 -O2', '12 of 78 objects compiled'),
        ('  Downloading torch-2.11.0-cp311.whl (530.6 MB)', 'downloading torch-2.11.0-cp311.whl (530.6 MB)'),
        ('Downloading host/a/numpy-2.2.6.whl.metadata (62 kB)', 'downloading numpy-2.2.6.whl (62 kB)'),
        ('Collecting timm==1.0.31 (from -r requirements/runtime.txt)', 'collecting timm==1.0.31'),
        ('Building wheel for onedl-mmcv (pyproject.toml): started', 'building onedl-mmcv'),
        ('Installing collected packages: six, numpy', 'unpacking'),
        ('copying mmcv/ops/nms.py -> build/lib', None),
        ('', None),
    ],
)
def test_progress_is_read_from_output(line, news):
    assert tool.progress_of(line) == news


@pytest.mark.parametrize(
    ('version', 'part'),
    [((3, 9, 2), 'too old'), ((2, 7, 18), 'too old'), ((3, 13, 0), 'newer'), ((4, 0), 'newer')],
)
def test_unsupported_python_is_named(version, part):
    problem = tool.python_problem(version, 'posix')
    assert part in problem
    assert '3.10 to 3.12' in problem
    assert '\n' not in problem


@pytest.mark.parametrize('minor', [10, 11, 12])
def test_supported_python(minor):
    assert tool.python_problem((3, minor, 1), 'posix') is None


def test_windows_is_turned_down():
    assert 'WSL' in tool.python_problem((3, 11, 0), 'nt')


@pytest.mark.parametrize(
    ('log', 'part'),
    [
        ("OSError: [Errno 28] No space left on device: '/tmp/x'", 'disk is full'),
        ('nms.cpp:1:10: fatal error: Python.h: No such file or directory', 'python3-dev'),
        ("error: command 'g++' failed: No such file or directory", 'no C++ compiler'),
        ('/bin/sh: 1: c++: not found', 'no C++ compiler'),
        ('g++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1'),
        ('Skip building ext ops due to the absence of torch.', 'isolation'),
        ('The detected CUDA version (12.1) mismatches the version', '12.1'),
        (
            'Failed to establish a new connection: [Errno -3]\nERROR: No matching distribution found for six',
            'network',
        ),
        ('ERROR: No matching distribution found for torch==9.9', 'pip finds no torch==9.9'),
        ("PermissionError: [Errno 13] Permission denied: '/opt/x'", '/opt/x'),
    ],
)
def test_causes_are_explained(log, part):
    assert part in tool.explain(f'Collecting six\n{log}\nmore output\n')


def test_an_unknown_failure_shows_its_last_error_and_the_log(tmp_path):
    log = tmp_path / 'mmcv.log'
    log.write_text('$ first\nNo space left on device\n$ second\nfine\nerror: odd thing\ntail\n')
    with pytest.raises(tool.SetupError) as caught:
        tool.failed('building mmcv', log)
    message = str(caught.value)
    assert 'odd thing' in message
    assert str(log) in message
    assert 'disk' not in message  # the command before is not what failed


def test_wheel_key_changes_with_each_input():
    base = ('2.3.6', '2.11.0+cu130', 'cp311', 'linux-x86_64', 'cpu')
    changed = ('2.3.7', '2.12.0', 'cp312', 'macosx-14.0-arm64', 'cuda-13.0-9.0 8.0')
    keys = {tool.wheel_key(*base)}
    for position, value in enumerate(changed):
        keys.add(tool.wheel_key(*base[:position], value, *base[position + 1 :]))
    assert len(keys) == 6
    assert not any(set(key) & set(' /:;') for key in keys)


def test_digest_sees_content_order_and_absence(tmp_path):
    file = tmp_path / 'a.txt'
    absent = tool.digest(file)
    file.write_text('numpy==1')
    first = tool.digest(file)
    file.write_text('numpy==2')
    assert len({absent, first, tool.digest(file), tool.digest('ab', 'c'), tool.digest('a', 'bc')}) == 5


def test_pins(tmp_path):
    file = tmp_path / 'x.txt'
    file.write_text('# mmcv==0\nonedl-mmcv==2.3.6; python_version > "3"\nsix==1.17.0\n')
    assert tool.pins(file) == {'onedl-mmcv': '2.3.6', 'six': '1.17.0'}


def test_a_stack_has_files_of_its_own_and_shares_the_others():
    def files(stack):
        names = ('torch.txt', 'mmcv.txt', f'{stack}.txt', 'runtime.txt', 'constraints.txt')
        paths = [tool.stack_file(name, stack, ROOT / 'requirements') for name in names]
        assert all(path.is_file() for path in paths)
        return paths

    onedl, openmmlab = files('onedl'), files('openmmlab')
    assert onedl[3:] == openmmlab[3:]
    pins = [tool.pins(a) | tool.pins(b) | tool.pins(c) for a, b, c, *_ in (onedl, openmmlab)]
    assert pins[0]['torch'] == '2.11.0'
    assert pins[1]['torch'] == '2.6.0'
    # None of the fork's packages beside upstream's: they unpack into the same folders.
    assert {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'} <= set(pins[0])
    assert {'mmengine', 'mmcv', 'mmdet', 'mmsegmentation'} <= set(pins[1])
    assert not any(name.startswith('onedl') for name in pins[1])


def test_another_stack_starts_the_environment_afresh(tmp_path):
    env = tool.Environment(tmp_path, {'CVT_DENSE_CACHE': str(tmp_path)}, tool.Progress(6, io.StringIO()))
    stamp = tool.Stamp(tmp_path / tool.STAMP_NAME)
    keys = [{step.name: step.key() for step in tool.Setup(env, stamp, stack).steps()} for stack in tool.STACKS]
    changed = {name for name in keys[0] if keys[0][name] != keys[1][name]}
    assert changed == {'venv', 'torch', 'libraries', 'mmcv'}


def test_an_unknown_stack_is_refused():
    with pytest.raises(SystemExit):
        tool.main(['--stack', 'openmmlabs'])


def test_every_requirement_is_pinned():
    for file in (ROOT / 'requirements').rglob('*.txt'):
        for line in file.read_text().splitlines():
            assert not line or line.startswith('#') or '==' in line.partition(';')[0], f'{file.name}: {line}'


def test_stamp_is_kept_and_forgotten(tmp_path):
    path = tmp_path / tool.STAMP_NAME
    stamp = tool.Stamp(path)
    stamp.record('torch', 'k1')
    stamp.record('mmcv', 'k2')
    again = tool.Stamp(path)
    assert again.done('torch', 'k1')
    assert not again.done('torch', 'other')
    again.forget('torch')
    assert not tool.Stamp(path).done('torch', 'k1')
    assert tool.Stamp(path).done('mmcv', 'k2')


@pytest.mark.parametrize('text', ['', '{"steps": {"a"', '[]', '{"steps": []}', '{}'])
def test_a_damaged_stamp_counts_as_none(tmp_path, text):
    path = tmp_path / tool.STAMP_NAME
    path.write_text(text)
    assert tool.Stamp(path).steps == {}


def test_cache_folder(tmp_path):
    assert tool.cache_folder({'CVT_DENSE_CACHE': str(tmp_path)}) == tmp_path
    assert tool.cache_folder({'XDG_CACHE_HOME': str(tmp_path)}) == tmp_path / 'cvt_dense'
    assert tool.cache_folder({}) == Path.home() / '.cache' / 'cvt_dense'


def test_only_whole_wheels_with_operators_are_taken(tmp_path):
    (tmp_path / 'a.whl').write_bytes(b'PK cut off')
    with zipfile.ZipFile(tmp_path / 'b.whl', 'w') as archive:
        archive.writestr('mmcv/__init__.py', '')
    assert tool.kept_wheel(tmp_path) is None
    with zipfile.ZipFile(tmp_path / 'c.whl', 'w') as archive:
        archive.writestr('mmcv/_ext.cpython-311-x86_64-linux-gnu.so', '')
    assert tool.kept_wheel(tmp_path) == tmp_path / 'c.whl'


def test_target_without_gpu_is_cpu():
    assert tool.choose_target('', [], '13.0', '13.0').kind == 'cpu'
    assert tool.choose_target('0', ['9.0'], '13.0', '13.0').kind == 'cpu'


def test_target_with_gpu_is_cuda_where_the_toolkit_fits():
    assert tool.choose_target('', ['9.0'], '13.1', '13.0') == tool.Target('cuda', 'cuda-13.1-9.0')
    assert tool.choose_target('1', [], '13.0', '13.0', '8.0;9.0').variant == 'cuda-13.0-8.0;9.0'
    for nvcc, torch_cuda in ((None, '13.0'), ('12.4', '13.0'), ('13.0', None)):
        target = tool.choose_target('', ['9.0'], nvcc, torch_cuda)
        assert target.kind == 'cpu'
        assert 'CPU only' in target.note
        with pytest.raises(tool.SetupError, match='FORCE_CUDA=1, but'):
            tool.choose_target('1', [], nvcc, torch_cuda)


def test_a_foreign_folder_is_refused_and_ours_is_emptied(tmp_path):
    foreign = tmp_path / 'foreign'
    foreign.mkdir()
    (foreign / 'thesis.tex').write_text('do not delete')
    with pytest.raises(tool.SetupError, match='no virtual environment'):
        tool.claim_folder(foreign)
    assert (foreign / 'thesis.tex').exists()

    half_made = tmp_path / 'half made'
    tool.claim_folder(half_made)
    tool.Stamp(half_made / tool.STAMP_NAME).clear()
    (half_made / 'bin').mkdir()
    tool.claim_folder(half_made)
    tool.empty_folder(half_made)
    assert [entry.name for entry in half_made.iterdir()] == [tool.STAMP_NAME]


def test_metadata_of_half_installed_packages_is_removed(tmp_path):
    for name, whole in (('six-1.dist-info', True), ('numpy-2.dist-info', False)):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'METADATA').write_text('')
        if whole:
            (tmp_path / name / 'INSTALLER').write_text('pip')
    tool.remove_half_installed(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ['six-1.dist-info']


def make_setup(tmp_path, monkeypatch, ran):
    """A `Setup` whose steps only note that they ran."""
    progress = tool.Progress(2, io.StringIO())
    env = tool.Environment(tmp_path, {'CVT_DENSE_CACHE': str(tmp_path)}, progress)
    setup = tool.Setup(env, tool.Stamp(tmp_path / tool.STAMP_NAME))
    keys = {'torch': 'a', 'mmcv': 'a'}
    present = dict.fromkeys(keys, True)

    def step(name):
        return tool.Step(name, name, lambda: keys[name], lambda: present[name], lambda: ran.append(name))

    monkeypatch.setattr(setup, 'steps', lambda: [step(name) for name in keys])
    monkeypatch.setattr(setup, '_look_ahead', lambda: None)
    return setup, keys, present, progress


def test_only_changed_steps_run_again(tmp_path, monkeypatch):
    ran = []
    setup, keys, present, progress = make_setup(tmp_path, monkeypatch, ran)
    setup.run()
    setup.run()
    assert ran == ['torch', 'mmcv']
    keys['mmcv'] = 'b'
    setup.run()
    assert ran == ['torch', 'mmcv', 'mmcv']
    present['torch'] = False
    setup.run()
    assert ran[3:] == ['torch']
    assert '[2/2] mmcv: unchanged' in progress.out.getvalue()


def test_a_failed_step_is_not_taken_as_done(tmp_path, monkeypatch):
    setup, keys, _, _ = make_setup(tmp_path, monkeypatch, [])
    setup.run()
    keys['torch'] = 'b'
    steps = setup.steps()

    def fail():
        raise tool.SetupError('no')

    broken = tool.Step('torch', 'torch', steps[0].key, steps[0].present, fail)
    monkeypatch.setattr(setup, 'steps', lambda: [broken, steps[1]])
    with pytest.raises(tool.SetupError):
        setup.run()
    keys['torch'] = 'a'  # also not with the inputs of before
    assert json.loads(setup.stamp.path.read_text()) == {'steps': {'mmcv': 'a'}}


def test_run_logged_writes_the_log_and_reports(tmp_path):
    progress = tool.Progress(1, io.StringIO())
    log = tmp_path / 'logs' / 'x.log'
    code = 'print("[3/9] c++"); raise SystemExit(5)'
    with progress.step(1, 'compile'):
        assert tool.run_logged([sys.executable, '-c', code], dict(os.environ), log, progress, tmp_path) == 5
    assert '[3/9] c++' in log.read_text()
    assert progress.out.getvalue().splitlines() == ['[1/1] compile ...', '[1/1] compile: done in 0:00']


def test_command_line_errors_are_lines_without_traceback(tmp_path):
    (tmp_path / 'thesis.tex').write_text('')
    command = [sys.executable, str(ROOT / 'tools' / 'setup_env.py'), '--venv', str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.startswith('error: ')
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture(scope='module')
def checkout(tmp_path_factory) -> Path:
    """A copy of what a wheel is built from, in a path with a space."""
    copy = tmp_path_factory.mktemp('a copy') / 'cvt_dense'
    copy.mkdir()
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in ('cvt_dense', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md', 'model-index.yml'):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, copy)
    (copy / 'cvt_dense' / 'weights').mkdir(exist_ok=True)
    (copy / 'cvt_dense' / 'weights' / 'tiny.safetensors').write_bytes(b'')
    return copy


def build(checkout: Path, target: Path) -> Path:
    """Build a wheel offline."""
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index', '-q']
    result = subprocess.run([*command, '-w', str(target), str(checkout)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(target.glob('*.whl'))


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob('*')}


def test_wheel_holds_configs_and_tools_and_leaves_nothing_behind(checkout, tmp_path):
    before = files_below(checkout)
    with zipfile.ZipFile(build(checkout, tmp_path)) as wheel:
        names = set(wheel.namelist())
        metadata = next(wheel.read(name).decode() for name in names if name.endswith('/METADATA'))
    assert files_below(checkout) == before

    configs = {f'cvt_dense/.mim/{path}' for path in before if path.startswith('configs/') and path.endswith('.py')}
    assert configs <= names
    assert 'cvt_dense/.mim/tools/setup_env.py' in names
    assert 'cvt_dense/weights/tiny.safetensors' in names
    assert 'cvt_dense/version.py' in names
    assert not any(name.startswith(('configs/', 'tools/', 'tests/')) for name in names)

    required = [
        line.partition(':')[2].strip()
        for line in metadata.splitlines()
        if line.startswith('Requires-Dist') and 'extra' not in line
    ]
    assert required
    assert not any(name.startswith(('mm', 'onedl')) for name in required)


def test_editable_build_links_configs_and_tools(checkout, tmp_path):
    code = 'from setuptools import build_meta; import sys; build_meta.build_editable(sys.argv[1])'
    result = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    mim = checkout / 'cvt_dense' / '.mim'
    assert os.readlink(mim / 'configs') == os.path.join('..', '..', 'configs')
    assert (mim / 'tools' / 'setup_env.py').exists()
    assert not (checkout / 'build').exists()
    shutil.rmtree(mim)
