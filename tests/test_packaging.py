"""What a built wheel and an editable install hold."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from paths import ROOT


@pytest.fixture(scope='module')
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from, in a path with a space."""
    copy = tmp_path_factory.mktemp('a copy') / 'cvt_dense'
    copy.mkdir()
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in ('cvt_dense', 'configs', 'tools', 'requirements'):
        shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    for name in ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md', 'model-index.yml'):
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


def test_wheel_holds_configs_and_tools_and_leaves_nothing_behind(checkout: Path, tmp_path: Path) -> None:
    before = files_below(checkout)
    wheel = build(checkout, tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(archive.read(name).decode() for name in names if name.endswith('/METADATA'))
    assert files_below(checkout) == before

    configs = {f'cvt_dense/.mim/{path}' for path in before if path.startswith('configs/') and path.endswith('.py')}
    assert configs <= names
    assert 'cvt_dense/.mim/tools/train.py' in names
    assert 'cvt_dense/weights/tiny.safetensors' in names
    assert 'cvt_dense/version.py' in names
    assert not any(name.startswith(('configs/', 'tools/', 'tests/')) for name in names)

    version = (ROOT / 'cvt_dense' / 'version.py').read_text().split("'")[-2]
    assert wheel.name == f'cvt_dense-{version}-py3-none-any.whl'
    required = [
        line.partition(':')[2].strip()
        for line in metadata.splitlines()
        if line.startswith('Requires-Dist') and 'extra' not in line
    ]
    assert required
    assert not any(name.startswith(('mm', 'onedl')) for name in required)


def test_editable_build_links_configs_and_tools(checkout: Path, tmp_path: Path) -> None:
    code = 'from setuptools import build_meta; import sys; build_meta.build_editable(sys.argv[1])'
    result = subprocess.run(
        [sys.executable, '-c', code, str(tmp_path)], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    mim = checkout / 'cvt_dense' / '.mim'
    assert os.readlink(mim / 'configs') == os.path.join('..', '..', 'configs')
    assert (mim / 'tools' / 'train.py').exists()
    assert not (checkout / 'build').exists()
    shutil.rmtree(mim)
