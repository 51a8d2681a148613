"""What a message calls a setting is what its user can change."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from paths import ROOT

from cvt_dense.datasets.settings import DataSettings, Place, cfg_options, datasets_by_path, derived_from, parsed_options

CONFIG = """
classes, other = ('cat',), 1
dataset = dict(ann_file='a.json', metainfo=dict(classes=classes))
train_dataloader = dict(dataset=dict(dataset=dataset))
val_dataloader = test_dataloader = dict(dataset=dict(datasets=[dataset, dict(ann_file='b.json')]))
val_evaluator = [dict(type='X'), dict(type='CocoMetric')]
test_evaluator = val_evaluator
"""


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    (tmp_path / 'c.py').write_text(CONFIG)
    return Config.fromfile(tmp_path / 'c.py')


def test_without_a_config_settings_are_those_of_data_sets() -> None:
    settings = DataSettings()
    assert settings.change('metainfo.classes', ('a',)) == "set metainfo.classes of the data to ('a',)"
    assert settings.change_evaluator(a=1, b='c') == "set a=1 and b='c' in the evaluator"
    assert list(settings.categories_elsewhere('a.json')) == []
    assert settings.without_masks().startswith('take a config without masks: configs/fasterrcnn')


def test_what_a_file_derives_is_set_at_its_top_and_all_else_by_options(cfg: Config) -> None:
    assert derived_from(cfg.filename) == {'classes', 'dataset', 'val_evaluator'}
    train, val = DataSettings(cfg), DataSettings(cfg, 'val')
    assert train.change('metainfo.classes', ('a b',)) == f"set classes = ('a b',) in {cfg.filename}"
    assert train.change('ann_file', 'c.json') == '--cfg-options train_dataloader.dataset.dataset.ann_file=c.json'
    first = [f'{split}_dataloader.dataset.datasets.0.ann_file=c.json' for split in ('val', 'test')]
    assert val.change('ann_file', 'c.json', dict(ann_file='a.json')) == f'--cfg-options {" ".join(first)}'
    assert val.change_evaluator(x=1) == '--cfg-options val_evaluator.1.x=1 test_evaluator.1.x=1'


def test_what_options_override_is_not_set_in_the_file_any_more(cfg: Config) -> None:
    cfg.merge_from_dict({'train_dataloader.dataset.dataset.metainfo.classes': ['dog']})
    option = 'train_dataloader.dataset.dataset.metainfo.classes="[a,b]"'
    assert DataSettings(cfg).change('metainfo.classes', ('a', 'b')) == f'--cfg-options {option}'


def test_a_dumped_config_derives_nothing(cfg: Config, tmp_path: Path) -> None:
    cfg.dump(tmp_path / 'dumped.py')
    assert derived_from(str(tmp_path / 'dumped.py')) == frozenset()
    for unreadable in (None, str(tmp_path), str(tmp_path / 'missing.py')):
        assert derived_from(unreadable) == frozenset()


@pytest.mark.parametrize('value', ['a', 1, True, None, 0.5, ['a'], ('a', 'b'), ['a-b', 'c_d']])
def test_options_are_parsed_to_what_they_were_written_from(value: Any) -> None:
    text = cfg_options({'x.y': value})
    (pair,) = [text.removeprefix('--cfg-options ').replace('"', '')]
    assert parsed_options([pair]) == {'x.y': list(value) if isinstance(value, tuple) else value}


@pytest.mark.parametrize('value', [['a b', 'c'], ['1'], ['a,b'], Place('(NAME, …)'), {'a': 1}])
def test_what_options_cannot_say_is_no_option(value: Any, cfg: Config) -> None:
    assert cfg_options({'x.y': value}) == ''
    assert 'in train_dataloader.dataset.dataset' in DataSettings(cfg).change('img_suffix', value)


def test_data_sets_are_found_by_their_paths(cfg: Config) -> None:
    found = [(path, settings.ann_file) for path, settings in datasets_by_path(cfg.val_dataloader.dataset, 'x')]
    assert found == [('x.datasets.0', 'a.json'), ('x.datasets.1', 'b.json')]


def test_every_error_of_data_says_what_cures_it() -> None:
    """As a second argument, which the doctor shows by itself."""
    without = []
    for path in sorted((ROOT / 'cvt_dense/datasets').glob('*.py')):
        if not path.stem.startswith('shapes'):  # the demo's, which read no data
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'UserError' and len(node.args) < 2:
                    without.append(f'{path.name}:{node.lineno}')
    assert without == []
