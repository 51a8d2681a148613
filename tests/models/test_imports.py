"""The models stand on PyTorch and timm alone: no toolkit, no file format, nothing of this package but themselves."""

from __future__ import annotations

import ast
import sys

import pytest
from paths import ROOT

MODELS = ROOT / 'cvt_dense' / 'models'


@pytest.mark.parametrize('path', sorted(MODELS.rglob('*.py')), ids=lambda path: path.relative_to(MODELS).as_posix())
def test_models_import_torch_and_timm_only(path) -> None:
    depth = len(path.relative_to(MODELS).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= depth, f'{path}, line {node.lineno}: outside of cvt_dense.models'
            names = [] if node.level else [node.module]
        else:
            continue
        tops = {name.partition('.')[0] for name in names}
        assert tops <= {'torch', 'timm'} | sys.stdlib_module_names, f'{path}, line {node.lineno}'
