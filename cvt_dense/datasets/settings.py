"""What a config calls the settings of its data, so that a message can say which of them to change, and where."""

from __future__ import annotations

import argparse
import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict, DictAction

from ..registry import each_evaluator, setting_at, type_name

SPLITS = ('train', 'val', 'test')
#: What configs for data of one's own set at their top, and derive these settings of their data sets from.
_AT_THE_TOP = {
    'ann_file': '{split}_annotations',
    'data_prefix.img': '{split}_images',
    'data_prefix.img_path': '{split}_images',
    'data_prefix.seg_map_path': '{split}_labels',
    'data_root': 'data_root',
    'img_suffix': 'image_suffix',
    'metainfo.classes': 'classes',
    'reduce_zero_label': 'reduce_zero_label',
    'seg_map_suffix': 'label_suffix',
}
#: Parts of a RoI head that masks alone need.
_MASK_PARTS = ('mask_head', 'mask_roi_extractor')


class Place(str):
    """What stands for a value that is no string, as ``(NAME, …)`` does: it is shown without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def datasets_by_path(dataset: Any, path: str = 'dataset') -> Iterator[tuple[str, ConfigDict]]:
    """The innermost data sets of one that may wrap or join others, by their paths in the config."""
    if dataset is None:
        return
    key = next((key for key in ('dataset', 'datasets') if dataset.get(key)), None)
    if key is None:
        yield path, dataset
    elif isinstance(dataset[key], (list, tuple)):
        for index, entry in enumerate(dataset[key]):
            yield from datasets_by_path(entry, f'{path}.{key}.{index}')
    else:
        yield from datasets_by_path(dataset[key], f'{path}.{key}')


class DataSettings:
    """The settings of a split's data, as the user of a config changes them.

    Args:
        cfg: The config; without one, settings are named as data sets have them.
        split: ``train``, ``val`` or ``test``.
    """

    def __init__(self, cfg: Config | None = None, split: str = 'train') -> None:
        self.cfg = cfg
        self.split = split

    def change(self, key: str, value: Any, dataset: Any = None, everywhere: bool = False) -> str:
        """How to give a setting of the data sets another value.

        Args:
            key: Its dotted path within a data set, such as ``metainfo.classes``.
            value: The other one, or a :class:`Place`.
            dataset: The one of the split's, if it is known; a data set or its settings.
            everywhere: In those of all splits.

        Returns:
            ``set NAME = VALUE in FILE`` where the file of the config derives the setting from a name, else
            ``--cfg-options PATH=VALUE …``, or words for what an option cannot say.
        """
        paths = [
            (path, settings)
            for split in (SPLITS if everywhere else self._splits('{}_dataloader'))
            for path, settings in self._datasets(split, None if everywhere else dataset)
        ]
        if not paths:
            return f'set {key} of the data to {value!r}'
        name = _AT_THE_TOP.get(key, '').format(split=self.split)
        if self._derives(name) and all(_get(settings, key) == self.cfg[name] for _, settings in paths):
            return f'set {name} = {value!r} in {self.cfg.filename}'
        return cfg_options({f'{path}.{key}': value for path, _ in paths}) or (
            f'set {key} = {value!r} in {", ".join(path for path, _ in paths)}'
        )

    def change_evaluator(self, **values: Any) -> str:
        """How to give settings of the split's ``CocoMetric`` other values."""
        paths = [
            path
            for split in self._splits('{}_evaluator')
            for path, metric in self._evaluators(split)
            if type_name(metric) == 'CocoMetric'
        ]
        if not paths:
            return f'set {" and ".join(f"{key}={value!r}" for key, value in values.items())} in the evaluator'
        return cfg_options({f'{path}.{key}': value for path in paths for key, value in values.items()})

    def others_end_in(self, suffix: str) -> bool:
        """Whether the folder of images of another split holds files that end so."""
        folders = [
            Path(settings.get('data_root') or '', _get(settings, 'data_prefix.img_path') or '')
            for split in SPLITS
            for _, settings in self._datasets(split)
        ]
        return any(next(folder.rglob(f'*{suffix}'), None) for folder in folders)

    def without_masks(self) -> str:
        """How to have a model that predicts boxes alone in place of the config's, which predicts masks too."""
        base = self._base_without_masks()
        if base:
            return f'set _base_ = {base!r} in {self.cfg.filename}: boxes alone'
        options = self._options_without_masks()
        if options is None:
            return 'take a config without masks: configs/fasterrcnn_cvt13_fpn_custom.py'
        return cfg_options(options)

    def label_from_1(self, dataset: Any) -> str:
        """How to have label 0 taken for "unlabelled": by data sets, and by loaders of label maps that say it too."""
        change = self.change('reduce_zero_label', True, dataset, everywhere=True)
        if not change.startswith('--cfg-options'):
            return change
        options = {
            f'{path}.{key}': True
            for split in SPLITS
            for path, settings in self._datasets(split)
            for key in [
                'reduce_zero_label',
                *(f'pipeline.{i}.reduce_zero_label' for i, step in _steps(settings) if 'reduce_zero_label' in step),
            ]
        }
        return cfg_options(options)

    def categories_elsewhere(self, file: str) -> Iterator[list[Any]]:
        """The names in the annotation files of the other splits, in the order of each; those that can be read."""
        for split in SPLITS:
            for _, settings in self._datasets(split):
                other = Path(settings.get('data_root') or '', settings.get('ann_file') or '')
                if split != self.split and other.is_file() and not _is_same(other, file):
                    with suppress(OSError, ValueError, KeyError, TypeError):  # which is said where it is read
                        yield [category['name'] for category in json.loads(other.read_bytes())['categories']]

    def _splits(self, part: str) -> tuple[str, ...]:
        """The split, and that of tests if it is the same as the one for validation."""
        mine, tests = ((self.cfg or {}).get(part.format(split)) for split in (self.split, 'test'))
        return ('val', 'test') if self.split == 'val' and mine == tests else (self.split,)

    def _datasets(self, split: str, dataset: Any = None) -> list[tuple[str, ConfigDict]]:
        """Those of a split by their paths; of several, those that may be the given one."""
        loader = self.cfg.get(f'{split}_dataloader') if self.cfg is not None else None
        found = list(datasets_by_path(loader.get('dataset') if loader else None, f'{split}_dataloader.dataset'))
        wanted = _files(dataset)
        same = [(path, settings) for path, settings in found if _files(settings) == wanted]
        return same or found

    def _evaluators(self, split: str) -> list[tuple[str, Mapping[str, Any]]]:
        evaluators = self.cfg.get(f'{split}_evaluator') if self.cfg is not None else None
        key = f'{split}_evaluator'
        if isinstance(evaluators, Mapping) and 'metrics' in evaluators:
            evaluators, key = evaluators['metrics'], f'{key}.metrics'
        found = each_evaluator(evaluators)
        return [(f'{key}.{i}' if isinstance(evaluators, (list, tuple)) else key, e) for i, e in enumerate(found)]

    def _derives(self, name: str) -> bool:
        """Whether the config's file sets a name that it reads again."""
        return bool(name) and self.cfg is not None and name in self.cfg and name in derived_from(self.cfg.filename)

    def _base_without_masks(self) -> str | None:
        """The config of boxes beside the one of masks that a config for data of one's own is based on."""
        if not self._derives('train_annotations'):
            return None
        base = _value_of('_base_', self.cfg.filename)
        if not isinstance(base, str):
            return None
        other = Path(base).with_name(Path(base).name.replace('maskrcnn', 'fasterrcnn'))
        is_there = other != Path(base) and Path(self.cfg.filename).parent.joinpath(other).is_file()
        return str(other) if is_there else None

    def _options_without_masks(self) -> dict[str, Any] | None:
        """What takes the masks out of a config; None if its model is of another kind than Mask R-CNN."""
        model = self.cfg.get('model') if self.cfg is not None else None
        if model is None or any('mask' in key and value for key, value in model.items()):
            return None
        roi_head = model.get('roi_head') or {}
        parts = [key for key, value in roi_head.items() if 'mask' in key and isinstance(value, (Mapping, list))]
        if not set(parts) <= set(_MASK_PARTS):
            return None
        options: dict[str, Any] = {f'model.roi_head.{part}': None for part in parts}
        for split in SPLITS:
            for path, settings in self._datasets(split):
                options |= {
                    f'{path}.pipeline.{i}.with_mask': False for i, step in _steps(settings) if step.get('with_mask')
                }
            options |= {
                f'{path}.metric': 'bbox'
                for path, metric in self._evaluators(split)
                if 'segm' in metric.get('metric', ())
            }
        return options


#: Where no config is known.
NO_CONFIG = DataSettings()


def derived_from(file: str | None) -> frozenset[str]:
    """The names that a config file sets and reads again: what is derived from them there changes with them."""
    names = [node for node in ast.walk(_parsed(file)) if isinstance(node, ast.Name)]
    return frozenset.intersection(
        *(frozenset(node.id for node in names if isinstance(node.ctx, kind)) for kind in (ast.Store, ast.Load))
    )


def cfg_options(settings: Mapping[str, Any]) -> str:
    """Settings by their dotted paths as ``--cfg-options``, in quotes for a shell; empty if options cannot say them."""
    pairs = [f'{path}={_written(value)}' for path, value in settings.items()]
    if parsed_options(pairs) != {path: _plain(value) for path, value in settings.items()}:
        return ''
    return f'--cfg-options {" ".join(_quoted(pair) for pair in pairs)}'


def parsed_options(pairs: Sequence[str]) -> dict[str, Any]:
    """What ``KEY=VALUE`` are for the tools that take them."""
    parser = argparse.ArgumentParser()
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args(['--cfg-options', *pairs]).cfg_options


def _written(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f'[{",".join(map(str, value))}]'
    return str(value)


def _plain(value: Any) -> Any:
    """A value as options have it: they know no tuple of one entry."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _quoted(pair: str) -> str:
    key, _, value = pair.partition('=')
    return pair if re.fullmatch(r'[\w./:@%+=-]*', value) else f'{key}="{value}"'


def _files(dataset: Any) -> tuple[Any, ...]:
    """What tells one data set from another: its annotation file and folders, without what they are joined to."""
    if dataset is None:
        return ()
    get = dataset.get if isinstance(dataset, Mapping) else lambda key: getattr(dataset, key, None)
    root, prefixes = str(get('data_root') or ''), get('data_prefix')
    paths = [get('ann_file'), *(prefixes.values() if isinstance(prefixes, Mapping) else ())]
    return tuple(str(path or '').removeprefix(root).strip('/') for path in paths)


def _steps(settings: ConfigDict) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The steps of a data set's pipeline with their places."""
    return enumerate(settings.get('pipeline') or ())


def _is_same(file: Path, other: str) -> bool:
    return file.resolve() == Path(other).resolve()


def _get(settings: Any, key: str) -> Any:
    try:
        return setting_at(settings, key)
    except (KeyError, TypeError):
        return None


def _value_of(name: str, file: str | None) -> Any:
    """What a config file sets a name to, if that is written out."""
    for node in _parsed(file).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                return None
    return None


def _parsed(file: str | None) -> ast.Module:
    try:
        return ast.parse(Path(file or '').read_text())
    except (OSError, SyntaxError, ValueError):  # no file, or none of Python
        return ast.Module([], [])
