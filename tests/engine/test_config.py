from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_config import CONFIG, load, message

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


@pytest.mark.parametrize(('name', 'text'), [('a.yaml', 'a: [1\n'), ('a.json', '{"a":'), ('a.txt', 'x'), ('a.py', '\0')])
def test_a_config_of_another_kind_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(UserError, match='cannot be read') as error:
        load(tmp_path, text, name)
    assert name in message(error)


@pytest.mark.parametrize('text', ['x = 1\n', "default_scope = 'mmdet'\n", "model = dict(type='X')\n"])
def test_a_part_of_a_config_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match='sets no model or no default_scope'):
        load(tmp_path, text)


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
