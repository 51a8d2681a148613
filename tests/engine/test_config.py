from __future__ import annotations

import inspect
import os
import re
from pathlib import Path

import pytest
from mmengine.hooks import EMAHook
from mmengine.runner import FlexibleRunner, Runner
from small_config import CONFIG, load, message

from cvt_dense.engine import config
from cvt_dense.engine.config import load_config
from cvt_dense.errors import UserError

pytestmark = pytest.mark.usefixtures('launch_environment')


def test_a_config_is_read_with_overrides(tmp_path: Path) -> None:
    options = {'model.backbone.init_cfg': None, 'param_scheduler.0.end': 7, 'randomness.seed': 1}
    cfg = load(tmp_path, options=options, launcher='pytorch')
    assert cfg.model.backbone.init_cfg is None
    assert (cfg.param_scheduler[0].end, cfg.randomness.seed) == (7, 1)
    assert cfg.launcher == 'pytorch'


@pytest.mark.parametrize(
    ('of_config', 'of_argument', 'expected'),
    [
        (None, None, os.path.join('work_dirs', 'config')),
        ('a', None, 'a'),
        ('a', 'b', 'b'),
        (None, 'b', 'b'),
    ],
)
def test_the_work_directory(tmp_path: Path, of_config: str | None, of_argument: str | None, expected: str) -> None:
    cfg = load(tmp_path, CONFIG + f'work_dir = {of_config!r}\n', work_dir=of_argument)
    assert cfg.work_dir == expected


@pytest.mark.parametrize('name', ['missing.py', '.'])
def test_a_missing_config_says_where_the_configs_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r'does not exist; .+ configs/') as error:
        load_config(str(tmp_path / name))
    assert str(tmp_path / name) in message(error)


@pytest.mark.parametrize(
    ('text', 'reason'),
    [
        ('model = dict(\n', 'SyntaxError'),
        ("_base_ = 'missing.py'\n" + CONFIG, 'missing.py'),
        ('x = undefined\n', 'NameError'),
        (
            "custom_imports = dict(imports=['no_such_package'], allow_failed_imports=False)\n" + CONFIG,
            'no_such_package',
        ),
        ('x = 1 / 0\n' + CONFIG, 'ZeroDivisionError'),
        ('x = [][1]\n' + CONFIG, 'IndexError'),
        ('x = [].no_such_attribute\n' + CONFIG, 'no_such_attribute'),
        ('x = {{_base_.missing}}\n' + CONFIG, 'missing'),
    ],
)
def test_a_broken_config_says_what_is_wrong(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(UserError, match='cannot be read') as error:
        load(tmp_path, text)
    assert 'config.py' in message(error)
    assert reason in message(error)


@pytest.mark.parametrize(
    ('base', 'told'),
    [
        ('None', 'which is switched off (None) in its base; leave mask_head out, or begin'),
        ('[dict(num_classes=2)]', 'which is a list in its base; write mask_head as the base has it, or begin'),
    ],
)
def test_a_dict_that_nothing_in_the_base_takes_is_a_line(tmp_path: Path, base: str, told: str) -> None:
    (tmp_path / 'base.py').write_text(f'{CONFIG}model.update(roi_head=dict(mask_head={base}))\n')
    child = "_base_ = 'base.py'\nmodel = dict(roi_head=dict(mask_head=dict({}num_classes=3)))\n"
    with pytest.raises(UserError) as error:
        load(tmp_path, child.format(''))
    assert f'config.py cannot be read: it merges a dict into mask_head, {told}' in message(error)
    assert load(tmp_path, child.format('_delete_=True, ')).model.roi_head.mask_head == dict(num_classes=3)
    assert load(tmp_path, "_base_ = 'base.py'\n").model.roi_head.mask_head in (None, [dict(num_classes=2)])


@pytest.mark.parametrize(('name', 'text'), [('a.yaml', 'a: [1\n'), ('a.json', '{"a":'), ('a.txt', 'x'), ('a.py', '\0')])
def test_a_config_of_another_kind_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError, match='cannot be read') as error:
        load(tmp_path, text, name)
    assert name in message(error)


@pytest.mark.parametrize(
    ('text', 'missing'),
    [
        ('x = 1\n', 'model'),
        ("default_scope = 'mmdet'\n", 'model'),
        ("model = dict(type='X')\n", 'default_scope'),
        ("model = dict(type='my_project.X')\ndefault_scope = None\n", 'default_scope'),
    ],
)
def test_a_part_of_a_config_is_refused(tmp_path: Path, text: str, missing: str) -> None:
    with pytest.raises(UserError, match=f'is not a runnable one: it sets no {missing}'):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ('text', 'scope'),
    [
        ("model = dict(type='mmdet.MaskRCNN')\n", 'mmdet'),
        (
            "model = dict(type='mmseg.models.segmentors.encoder_decoder.EncoderDecoder')\ndefault_scope = None\n",
            'mmseg',
        ),
        ('from mmdet.models import MaskRCNN\nmodel = dict(type=MaskRCNN)\ndefault_scope = None\n', 'mmdet'),
    ],
)
def test_the_toolkit_is_that_of_the_model_where_the_config_names_none(tmp_path: Path, text: str, scope: str) -> None:
    """As new-style configs do not."""
    assert load(tmp_path, text).default_scope == scope


@pytest.mark.parametrize(
    ('split', 'missing'),
    [
        ('train', 'train_dataloader'),
        ('train', 'train_cfg'),
        ('train', 'optim_wrapper'),
        ('train', 'val_evaluator'),
        ('test', 'test_dataloader'),
        ('test', 'test_cfg'),
        ('test', 'test_evaluator'),
    ],
)
@pytest.mark.parametrize('how', ['left out', 'None'])
def test_what_a_run_is_made_of_is_asked_for(tmp_path: Path, split: str, missing: str, how: str) -> None:
    parts = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'val_dataloader', 'val_cfg', 'val_evaluator')
    parts += ('test_dataloader', 'test_cfg', 'test_evaluator')
    text = ''.join(f'{part} = dict(type="X")\n' for part in parts if part != missing)
    cfg = load(tmp_path, CONFIG.replace('optim_wrapper', '_') + text + (f'{missing} = None' if how == 'None' else ''))
    with pytest.raises(UserError, match=f'the config sets no {missing}, which {split}ing needs'):
        config.check_complete(cfg, split)
    config.check_complete(cfg, 'test' if split == 'train' else 'train')


def test_every_setting_that_mmengine_looks_up_can_be_overridden(tmp_path: Path) -> None:
    """And those that its Runners take as arguments."""
    looked_up: set[str] = set()
    for runner in (Runner, FlexibleRunner):
        text = Path(inspect.getfile(runner)).read_text()
        looked_up |= set(re.findall(r"\bself\.cfg\.get\(\s*'(\w+)'", text))
        looked_up |= set(inspect.signature(runner).parameters) - {'cfg', 'model'}
    assert {'sync_bn', 'compile', 'activation_checkpointing', 'strategy'} <= looked_up
    cfg = load(tmp_path, options=dict.fromkeys(looked_up - {'param_scheduler', 'optim_wrapper'}, 'given'))
    assert cfg.sync_bn == cfg.compile == 'given'


def test_a_hook_is_added_once_wherever_it_is_and_however_it_is_written(tmp_path: Path) -> None:
    cfg = load(tmp_path)
    for _ in range(2):
        config.add_hook(cfg, 'EMAHook')
    assert cfg.custom_hooks == [dict(type='EMAHook')]
    for hooks in ([dict(type=EMAHook)], [dict(type='mmengine.EMAHook', momentum=0.1)]):
        cfg.custom_hooks = hooks
        config.add_hook(cfg, 'EMAHook')
        assert len(cfg.custom_hooks) == 1
    cfg.custom_hooks = None
    cfg.default_hooks = dict(ema=dict(type='EMAHook'), samples=None)
    config.add_hook(cfg, 'EMAHook')
    assert not cfg.custom_hooks


def test_hooks_of_ours_may_be_none_as_mmengines_own(tmp_path: Path) -> None:
    cfg = load(tmp_path, CONFIG + 'default_hooks = dict(samples=None, curves=None, checkpoint=None)\n')
    config.leave_out_hooks(cfg)
    assert cfg.default_hooks == dict(checkpoint=None)


@pytest.mark.parametrize('option', ['modle.backbone.arch', 'modle'])
def test_an_override_that_nothing_would_read_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError, match=f"--cfg-options {option}: neither the config nor the Runner .+ 'modle'"):
        load(tmp_path, options={option: 'cvt-21'})


@pytest.mark.parametrize(
    'option', ['param_scheduler.5.end', 'param_scheduler.end', 'model.backbone.arch.depths', 'default_scope.0']
)
def test_an_override_that_leads_nowhere_is_refused(tmp_path: Path, option: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, options={option: 1})
    assert option in message(error)
