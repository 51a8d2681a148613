"""How the package is laid out: imports run down only, and what is light stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / 'cvt_dense'
#: From top to bottom: a package imports from itself and from those below it.
FLOORS = (
    'apis',
    'publishing',
    'engine',
    'backbones',
    'analysis',
    'checkpoints',
    'datasets',
    'visualization',
    'models',
    'cli',
    'signals',
    'files',
    'registry',
    'errors',
    'version',
)
#: What a package must not import, though it is below it.
NOT_BELOW = {
    'engine': {'backbones', 'analysis', 'models'},
    'datasets': {'visualization', 'models'},
    'visualization': {'models'},
    'models': {'cli', 'registry', 'errors'},
    'checkpoints': {'datasets', 'visualization', 'cli'},
}
#: Of the models, checkpoints are compared with the architecture and the trunk's tensors, and with nothing else.
CHECKPOINTS_KNOW = {
    *('models.arch', 'models.trunk', 'models.cvt', 'models.cvt.arch', 'models.cvt.trunk'),
    *('models.cmt', 'models.cmt.arch', 'models.cmt.trunk', 'models.cmt.position_bias'),
}
TOOLKITS = {'mmengine', 'mmcv', 'mmdet', 'mmseg'}
#: Packages, and modules of packages, that import no toolkit.
WITHOUT_TOOLKITS = (
    *('models', 'errors', 'registry', 'cli', 'signals', 'files'),
    *('backbones.timm', 'backbones.weights', 'analysis.flops', 'datasets.decoding'),
    *(f'apis.{name}' for name in ('file_predictor', 'inputs', 'items', 'metadata', 'output', 'run', 'runtimes')),
)
MODULES = sorted(PACKAGE.rglob('*.py'))


def name_of(path: Path) -> str:
    """``engine.launch`` of ``cvt_dense/engine/launch.py``, ``engine`` of its ``__init__.py``."""
    parts = path.relative_to(PACKAGE).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def imports_of(path: Path, source: str | None = None) -> Iterator[str]:
    """All that a module imports, within functions and for type checkers too; what is ours begins with a dot."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text() if source is None else source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            base += [node.module] if node.module else []
            names = ['.'.join([*base, alias.name]) for alias in node.names]
        else:
            continue
        for name in names:
            yield '.' + name.partition('.')[2] if name.partition('.')[0] == 'cvt_dense' else name


def faults(path: Path, source: str | None = None) -> list[str]:
    """Imports of a module that run up or sideways, or that its package must not have."""
    name = name_of(path)
    package = name.split('.')[0]
    found = []
    for imported in imports_of(path, source):
        if not imported.startswith('.'):
            if imported.split('.')[0] in TOOLKITS and any(f'{name}.'.startswith(f'{own}.') for own in WITHOUT_TOOLKITS):
                found.append(f'{name} imports {imported}')
            continue
        target = imported[1:].split('.')[0]
        if target not in FLOORS:  # a name of cvt_dense/__init__.py, on top of all
            found.append(f'{name} imports {imported[1:]} from the package itself')
            continue
        is_up = FLOORS.index(target) < FLOORS.index(package) or target in NOT_BELOW.get(package, ())
        is_unknown = target == 'models' and imported[1:].rpartition('.')[0] not in CHECKPOINTS_KNOW
        if is_up or (package == 'checkpoints' and is_unknown):
            found.append(f'{name} imports {imported[1:]}')
    return found


@pytest.mark.parametrize('path', [path for path in MODULES if name_of(path)], ids=name_of)
def test_imports_run_down_only(path: Path) -> None:
    assert faults(path) == []


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('models/attention.py', 'from ..engine import launch'),
        ('models/cvt/arch.py', 'def f():\n    from ...errors import UserError'),
        ('models/cvt/trunk.py', 'from mmengine.model import BaseModule'),
        ('datasets/check.py', 'from ..checkpoints.files import read'),
        ('datasets/check.py', 'import cvt_dense.checkpoints.files'),
        ('engine/launch.py', 'from ..backbones.cvt import CvT'),
        ('engine/launch.py', 'if True:\n    from cvt_dense.models.cvt import CvTTrunk'),
        ('checkpoints/load.py', 'from ..models.windows import cut'),
        ('backbones/cvt.py', 'from .. import CvTTrunk'),
        ('errors.py', 'from .cli import run'),
    ],
)
def test_an_import_that_runs_up_would_be_seen(module: str, source: str) -> None:
    assert faults(PACKAGE / module, source)


def test_every_module_has_a_floor() -> None:
    assert {name_of(path).split('.')[0] for path in MODULES} - {''} == set(FLOORS)


def test_models_and_datasets_are_imported_without_mmengine_and_opencv() -> None:
    code = 'import sys, cvt_dense.models, cvt_dense.models.cvt, cvt_dense.datasets; print(*sys.modules)'
    out = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {'torch', 'timm'} < set(out.split())
    assert not {'cv2', *TOOLKITS} & set(out.split())


#: Modules that may be the first of all to import mmengine, upon which those that register something are imported.
FIRST = [path for path in MODULES if any(name.split('.')[0] in TOOLKITS for name in imports_of(path))]


def test_any_module_may_be_the_first_to_import_mmengine() -> None:
    """Each in a process forked from one that has imported torch and timm alone, which takes seconds."""
    code = f"""
import importlib, os, sys
import addict, cv2, matplotlib.pyplot, numpy, pycocotools.mask, rich.console, scipy.optimize, shapely.geometry
import sklearn.gaussian_process, timm, torch._dynamo, torchvision.ops, yaml, yapf
failed = []
for name in {[f'cvt_dense.{name_of(path)}' for path in FIRST]}:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        importlib.import_module(name)
        from mmengine.registry import HOOKS, MODELS
        os._exit(int(None in (MODELS.get('CvT'), HOOKS.get('SamplesHook'))))
    failed += [name] * (os.waitpid(child, 0)[1] != 0)
print(*failed)
"""
    result = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [], result.stderr


def private_imports(path: Path) -> Iterator[str]:
    """What a module imports of other packages under private names, such as ``torch.utils._pytree``."""
    for name in imports_of(path):
        if not name.startswith(('.', '__future__')) and any(part.startswith('_') for part in name.split('.')):
            yield name


@pytest.mark.parametrize('path', [path for path in MODULES if list(private_imports(path))], ids=name_of)
def test_private_names_that_are_imported_are_listed_with_a_reason(path: Path) -> None:
    listed = re.findall(r'`([^`]+)`', (ROOT / 'docs' / 'design.md').read_text().partition('\n## Private names')[2])
    for name in private_imports(path):
        assert any(name == entry or name.startswith(f'{entry}.') for entry in listed), name
