"""Configs whose types are classes, as toolkits' newest ones are: every tool, and on what it keeps of the config."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from mmengine.config import Config
from paths import ROOT
from tool_processes import run_tool

from cvt_dense.datasets.shapes_files import make_dataset
from cvt_dense.engine.config import load_config
from cvt_dense.registry import type_name

NEW, OLD = ROOT / 'configs/new_style/maskrcnn_cvttiny_fpn_shapes.py', ROOT / 'configs/maskrcnn_cvttiny_fpn_shapes.py'
SEGMENTATION = ROOT / 'configs/upernet_cvttiny_shapes.py'
WITHOUT_WORKERS = [
    f'{split}_dataloader.{setting}'
    for split in ('train', 'val', 'test')
    for setting in ('num_workers=0', 'persistent_workers=False')
]
SMALL = [
    *WITHOUT_WORKERS,
    'train_dataloader.batch_size=2',
    'train_cfg.max_epochs=1',
    'train_cfg.val_interval=1',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]
SMALL_SEGMENTATION = [
    *WITHOUT_WORKERS,
    'model.data_preprocessor.size=(64,64)',
    'train_dataloader.batch_size=2',
    'train_cfg.max_iters=2',
    'train_cfg.val_interval=2',
    'default_hooks.checkpoint.interval=2',
    'default_hooks.logger.interval=1',
    'randomness.seed=0',
]
FLAGS = ['--amp', '--ema', '--auto-scale-lr', '--log-to', 'tensorboard']

Tool = Callable[..., CompletedProcess[str]]


@pytest.fixture(scope='module')
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('run') / 'data' / 'shapes'
    make_dataset(folder, train=4, val=2, size=64)
    return folder


@pytest.fixture(scope='module')
def tool(shapes: Path) -> Tool:
    """Runs a tool, which must not fail and print no stack trace."""

    def run(name: str, *arguments: object, options: list[str] | None = None) -> CompletedProcess[str]:
        env = os.environ | dict(SHAPES_ROOT='data/shapes', CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
        overrides = ['--cfg-options', *options] if options else []
        result = run_tool([ROOT / 'tools' / f'{name}.py', *arguments, *overrides], cwd=shapes.parents[1], env=env)
        output = result.stdout + result.stderr
        assert result.returncode == 0, output[-4000:]
        assert 'Traceback' not in output, output[-4000:]
        return result

    return run


def test_both_styles_describe_one_model() -> None:
    new, old = load_config(str(NEW)), load_config(str(OLD))
    assert new.default_scope == old.default_scope == 'mmdet'
    assert _names(new.model.roi_head) == _names(old.model.roi_head)
    assert _names(new.model.train_cfg) == _names(old.model.train_cfg)


def _names(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: type_name(node) if key == 'type' else _names(node[key]) for key in sorted(node)}
    return [_names(entry) for entry in node] if isinstance(node, (list, tuple)) else node


def test_what_is_no_setting_is_left_out_of_a_config(tmp_path: Path) -> None:
    """mmengine would write functions and modules down, in a file that nothing can read."""
    text = NEW.read_text() + '\n\ndef function():\n    pass\n'
    (tmp_path / 'config.py').write_text(text)
    cfg = load_config(str(tmp_path / 'config.py'))
    cfg.dump(tmp_path / 'dumped.py')
    dumped = load_config(str(tmp_path / 'dumped.py'))
    assert type_name(dumped.model.backbone) == 'CvT'
    assert dumped.default_scope == 'mmdet'


@pytest.mark.slow
@pytest.mark.parametrize(
    ('config', 'small', 'checkpoint'),
    [(NEW, SMALL, 'epoch_1.pth'), (SEGMENTATION, SMALL_SEGMENTATION, 'iter_2.pth')],
    ids=['new style', 'names'],
)
def test_tools_run_with_every_flag_and_again_on_the_config_that_they_kept(
    tool: Tool, shapes: Path, tmp_path: Path, config: Path, small: list[str], checkpoint: str
) -> None:
    """What a tool adds to a config is there once, and what starts a run is not kept."""
    work_dir, again = tmp_path / 'run', tmp_path / 'again'
    base = [] if config == NEW else ['auto_scale_lr.base_batch_size=8']
    tool('train', config, '--work-dir', work_dir, *FLAGS, options=[*small, *base])
    kept = work_dir / config.name
    tool('train', kept, '--work-dir', again, *FLAGS)
    assert _settings(again / config.name) == _settings(kept)
    first, second = (torch.load(folder / checkpoint, weights_only=False) for folder in (work_dir, again))
    assert all(torch.equal(first['state_dict'][name], tensor) for name, tensor in second['state_dict'].items())

    # Resumed, and the config of the resumed run begins anew.
    more = 'train_cfg.max_iters=4' if config == SEGMENTATION else 'train_cfg.max_epochs=2'
    output = tool('train', kept, '--work-dir', work_dir, *FLAGS, '--resume', options=[more]).stdout
    assert 'resumed epoch: ' in output
    settings = load_config(str(kept))
    assert not settings.resume
    assert settings.load_from is None
    init_cfg, given = (load_config(str(path)).model.backbone.get('init_cfg') for path in (kept, config))
    assert (init_cfg and init_cfg.checkpoint) == (given and given.checkpoint)
    checkpoint = sorted(path.name for path in work_dir.glob('*_[0-9].pth') if 'best' not in path.name)[-1]
    assert [type_name(hook) for hook in settings.custom_hooks] == ['Float32OperatorsHook', 'EMAHook']

    # Evaluation, twice with files and pictures, and without: the config that it keeps does not write them again.
    out = tmp_path / ('maps' if config == SEGMENTATION else 'a.pkl')
    arguments = [work_dir / checkpoint, '--work-dir', tmp_path / 'test']
    for given in (kept, tmp_path / 'test' / config.name):
        tool('test', given, *arguments, '--out', out, '--show-dir', tmp_path / 'shown')
        assert out.exists()
    assert 'Dump' not in (tmp_path / 'test' / config.name).read_text()
    assert len(list((tmp_path / 'shown').glob('*.png'))) == 2
    if config != NEW:
        return  # the other tools read configs of this style in tests of their own

    images = shapes / 'images/validation'
    tool('predict', kept, work_dir / checkpoint, images, '--out', tmp_path / 'predictions')
    entries = json.loads((tmp_path / 'predictions/images.json').read_text())
    assert len(entries['images']) == 2
    image = sorted(images.iterdir())[0]
    tool('visualize', image, '--config', kept, '--checkpoint', work_dir / checkpoint, '--out', tmp_path / 'looked at')
    tool('count_flops', kept, '--size', '64', '64')
    tool('export', kept, work_dir / checkpoint, '--part', 'backbone', '--out', tmp_path / 'a.pt')
    printed = tool('doctor', kept, options=['randomness.seed=1']).stdout
    assert 'FAIL' not in printed


def _settings(path: Path) -> dict[str, Any]:
    cfg = Config.fromfile(path).to_dict()
    cfg.pop('work_dir')
    return cfg
