"""What the documentation shows is run: the ways into existing projects, on the toolkits' own configs."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import mmdet.models  # noqa: F401  registers what its configs name
import mmseg.models  # noqa: F401  likewise
import pytest
import torch
from conftest import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

SNIPPETS = [
    (path, block)
    for path in ('README.md', 'docs/checkpoints.md')
    for block in re.findall(r'```python\n(.*?)```', (ROOT / path).read_text(), re.DOTALL)
    if 'custom_imports' in block
]


def configs(package: str) -> Path:
    """The folder of configs that came with a toolkit."""
    return Path(importlib.util.find_spec(package).origin).parent / '.mim' / 'configs'


def test_the_documentation_shows_how_to_use_it_in_a_project() -> None:
    assert [path for path, _ in SNIPPETS] == ['README.md', 'docs/checkpoints.md', 'docs/checkpoints.md']


@pytest.mark.parametrize(('path', 'block'), SNIPPETS, ids=[f'{path}-{i}' for i, (path, _) in enumerate(SNIPPETS)])
def test_a_projects_config_takes_the_backbone(path: str, block: str, tmp_path: Path) -> None:
    named = re.search(r"_base_ = '(.+)'", block)
    base = named[1] if named else 'mask-rcnn_r50_fpn_1x_coco.py'
    scope = 'mmseg' if 'decode_head' in block else 'mmdet'
    (found,) = configs(scope).rglob(base)
    (tmp_path / 'config.py').write_text(f"_base_ = '{found}'\n" + block.replace(named[0] if named else '\0', ''))
    cfg = Config.fromfile(tmp_path / 'config.py')
    assert cfg.model.backbone.init_cfg.checkpoint == 'cvt-13-384x384-in22k'
    cfg.model.backbone.init_cfg = None
    for part in ('decode_head', 'auxiliary_head', 'backbone'):
        if 'norm_cfg' in cfg.model.get(part, {}):
            cfg.model[part].norm_cfg = dict(type='BN')  # SyncBN is for several GPUs
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        model = MODELS.build(cfg.model).eval()
        features = model.extract_feat(torch.randn(1, 3, 64, 96))
        if scope == 'mmdet':
            scores, _ = model.rpn_head(features)
            assert [tuple(s.shape[2:]) for s in scores] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
        else:
            assert model.decode_head(features).shape == (1, 150, 16, 24)
            assert model.auxiliary_head(features).shape == (1, 150, 4, 6)


def test_the_installation_page_names_what_is_pinned_and_what_exists() -> None:
    page = (ROOT / 'docs' / 'install.md').read_text()
    for path in re.findall(r'\b(?:requirements|tests|tools)/[\w/]+(?:\.\w+)?', page):
        assert (ROOT / path).exists(), path
    targets = re.findall(r'^([\w-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    assert set(re.findall(r'\bmake ([\w-]+)', page)) <= set(targets)
    table = re.search(r'## What was tried together\n(.+?)\n## ', page, re.DOTALL)[1]
    rows = dict(re.findall(r'^\| ([\w, ]+) \| (.+) \|$', table, re.MULTILINE))
    for column, folder in enumerate(('requirements', 'requirements/openmmlab')):
        pins = [path.read_text() for path in sorted((ROOT / folder).glob('*.txt'))]
        for packages in ('torch, torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation'):
            cell = rows[packages].split(' | ')[column].removeprefix('onedl ')
            for package, version in zip(packages.split(', '), cell.split(', '), strict=True):
                name = {'mmdet': 'mm(?:det|detection)'}.get(package, package)
                assert re.search(rf'^(?:onedl-)?{name}=={re.escape(version)}$', '\n'.join(pins), re.MULTILINE), package
