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
from mmengine.registry import HOOKS, MODELS, DefaultScope

SNIPPETS = [
    (path, block)
    for path in ('README.md', 'docs/checkpoints.md')
    for block in re.findall(r'```python\n(.*?)```', (ROOT / path).read_text(), re.DOTALL)
    if 'custom_imports' in block
]


def section(path: str, title: str) -> str:
    """What a page has below a heading of the second level."""
    return (ROOT / path).read_text().partition(f'\n## {title}\n')[2].partition('\n## ')[0]


def test_what_watching_a_run_can_be_set_to_is_there_to_be_set() -> None:
    text = section('docs/training.md', 'Watching a run')
    settings = dict(re.findall(r'^\| `([\w.]+)=(\S+)` \|', text, re.MULTILINE))
    assert len(settings) == 4
    cfg = Config.fromfile(ROOT / 'configs' / 'maskrcnn_cvt13_fpn_coco.py')
    for key, value in settings.items():
        node = cfg
        for part in key.split('.')[:-1]:
            node = node[part]
        if 'samples' not in key:
            assert key.split('.')[-1] in node, f'{key}={value}'
    samples = {key.split('.')[-1]: int(value) for key, value in settings.items() if 'samples' in key}
    HOOKS.build(cfg.default_hooks.samples | samples)
    (block,) = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    assert len([HOOKS.build(hook) for hook in Config.fromstring(block, '.py').custom_hooks]) == 2


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
