"""Check the data of a config before a run fails on them."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine.config import ConfigDict
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from ..errors import UserError, reason
from ..registry import type_name
from .coco_file import GroundTruth, Use, check_annotations, for_evaluation, read_annotations
from .heads import check_heads
from .loaders import check_loop
from .paths import has_backend, reads_elsewhere
from .reading import CheckedAnnotations, CheckedImage, check_while_reading
from .settings import NO_CONFIG, DataSettings

SAMPLE = 20  # images of each data set that are opened

#: What registries, constructors and mmdet's assertions raise for wrong settings and annotations.
BUILD_ERRORS = (
    AssertionError,
    AttributeError,
    ImportError,  # of storage's client
    IndexError,
    KeyError,
    NotImplementedError,  # by storage that cannot list folders
    OSError,
    TypeError,
    ValueError,
)


_CORRECT = 'correct its settings in the config'


@dataclass
class Watched:
    """Data sets that were loaded, what their evaluators compare with, and what was skipped, a line for each kind."""

    ground_truth: GroundTruth
    datasets: list[BaseDataset] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@contextmanager
def watch_loading(
    may_skip: bool = False, evaluators: Any = None, settings: DataSettings = NO_CONFIG
) -> Iterator[Watched]:
    """Check what data sets load, as they load it: nothing is parsed twice, and no image is opened.

    An annotation file in COCO's format is checked, all files have to be there, and from then on the data set
    names the file that it cannot read (see :mod:`cvt_dense.datasets.reading`). Data sets that keep their entries
    unserialized are not checked.

    Args:
        may_skip: Skip images that cannot be read where the config allows it.
        evaluators: Those that the config has for the data sets, if they are evaluated. By default data sets in
            ``test_mode`` are taken to be evaluated by a ``CocoMetric``.
        settings: What the config calls the settings of its data, for messages.

    Raises:
        UserError: If something is missing or wrong; the message names the first.
    """
    watched = Watched(GroundTruth(evaluators, settings))
    serialize = BaseDataset._serialize_data

    def look_and_serialize(dataset: BaseDataset) -> Any:
        watched.datasets.append(dataset)
        watched.notes += _check_entries(dataset, may_skip, settings)
        check_while_reading(dataset, may_skip, settings)
        return serialize(dataset)

    replaced: list[tuple[type, str, Any]] = [(BaseDataset, '_serialize_data', look_and_serialize)]
    if find_spec('mmdet'):
        from mmdet.datasets import CocoDataset

        parse = CocoDataset.COCOAPI

        def look_and_parse(dataset: CocoDataset, path: str) -> Any:
            file, classes, use = str(dataset.ann_file), dataset.metainfo['classes'], _use(dataset, evaluators)
            content = read_annotations(path, use, file, settings=settings)
            watched.notes += check_annotations(file, content, classes, use, settings).notes
            watched.notes += watched.ground_truth.check(file, content, classes)
            coco = parse()
            coco.dataset = content
            coco.createIndex()
            coco.img_ann_map, coco.cat_img_map = coco.imgToAnns, coco.catToImgs  # mmdet's names for them
            return coco

        replaced.append((CocoDataset, 'COCOAPI', look_and_parse))
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in replaced]
    try:
        for owner, name, value in replaced:
            setattr(owner, name, value)
        yield watched
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _use(dataset: Any, evaluators: Any) -> Use:
    """What a data set of mmdet, and its evaluators if there are some, read annotations for."""
    loaders = [step for step in dataset.pipeline.transforms if isinstance(step, LoadAnnotations)]
    filters = {} if dataset.test_mode else dataset.filter_cfg or {}
    use = Use(
        masks=any(loader.with_mask for loader in loaders),
        rle=all(loader.poly2mask for loader in loaders),
        skip_empty=filters.get('filter_empty_gt', False),
        min_size=filters.get('min_size', 0),
    )
    is_evaluated = dataset.test_mode or evaluators is not None
    return for_evaluation(use, dataset.ann_file, evaluators) if is_evaluated else use


def _check_entries(dataset: BaseDataset, may_skip: bool, settings: DataSettings) -> list[str]:
    """Check that a data set, whose entries are not serialized yet, has images and that all of its files exist."""
    name = type(dataset).__name__
    notes = _files_of_other_suffixes(dataset, settings)
    steps = dataset.pipeline.transforms
    images = [step for step in steps if isinstance(step, LoadImageFromFile)]
    local = not has_backend(getattr(dataset, 'backend_args', None)) and not any(map(reads_elsewhere, steps))
    needed = {'img_path': 'image'} if images and local else {}
    if needed and any(isinstance(step, LoadAnnotations) and step.with_seg for step in steps):
        needed['seg_map_path'] = 'label map'
    for key, what in needed.items():
        paths = [entry[key] for entry in dataset.data_list if isinstance(entry.get(key), str)]
        missing = missing_files(paths)
        if missing and what == 'image' and may_skip and all(step.ignore_empty for step in images):
            notes.append(f'{name}: images that do not exist, others are drawn instead: {len(missing)}')
        elif missing:
            more = f', nor do {len(missing) - 1} more of {len(paths)}' if len(missing) > 1 else ''
            raise UserError(
                f'{what} {missing[0]} does not exist{more}', _where_files_are(what, paths, missing, dataset, settings)
            )
    if not dataset.data_list:
        raise UserError(f'{name} of {dataset.data_root or dataset.ann_file} has no image', 'list images in it')
    return notes


def _where_files_are(
    what: str, paths: list[str], missing: list[str], dataset: BaseDataset, settings: DataSettings
) -> str:
    """What to do about files that are not there: if none is, the setting of their folder or suffix may be wrong."""
    if len(missing) < len(paths):
        rest = 'its entry from the annotation file' if dataset.ann_file else 'its image'
        return f'put it there, or remove {rest}'
    key = 'seg_map_path' if what == 'label map' else next(iter(dataset.data_prefix), 'img_path')
    folder, suffix = os.path.split(missing[0])[0], getattr(dataset, 'seg_map_suffix', None)
    others = {os.path.splitext(name)[1] for name in os.listdir(folder)} if os.path.isdir(folder) else set()
    if what == 'label map' and suffix not in others and len(others) == 1:
        return settings.change('seg_map_suffix', others.pop(), dataset)
    return f'put them there, or {settings.change(f"data_prefix.{key}", "FOLDER", dataset)}'


def missing_files(paths: Iterable[str]) -> list[str]:
    """Those paths that are not files; each folder is listed once, which takes a second for 100 000 files."""
    listed: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if '://' in path:
            continue
        if folder not in listed:
            listed[folder] = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        if name not in listed[folder]:
            missing.append(path)
    return missing


def _files_of_other_suffixes(dataset: Any, settings: DataSettings) -> list[str]:
    """What mmseg skips in a folder that it lists by suffix."""
    suffix, folder = getattr(dataset, 'img_suffix', None), dataset.data_prefix.get('img_path')
    if suffix is None or dataset.ann_file or not folder:
        return []
    names = [name for _, _, names in os.walk(folder) for name in names]
    if not dataset.data_list:
        common = Counter(os.path.splitext(name)[1] for name in names if not name.startswith('.')).most_common(1)
        right = common[0][0] if common else 'SUFFIX'
        alone = settings.change('img_suffix', right, dataset)
        is_shared = not alone.startswith('--cfg-options') and settings.others_end_in(suffix)
        rename = f'rename its files to *{suffix}, as those of the other splits end'
        raise UserError(f'{folder} holds no file *{suffix}', rename if is_shared else alone)
    others = sum(not name.endswith(suffix) and not name.startswith('.') for name in names)
    return [f'{folder}: files skipped because they do not end in {suffix}: {others}'] if others else []


def read_sample(dataset: BaseDataset) -> tuple[int, list[str]]:
    """Open some of a data set's images with their annotations, as its pipeline does.

    Args:
        dataset: One that was loaded under :func:`watch_loading`.

    Returns:
        How many were opened, and what is worth knowing.

    Raises:
        UserError: If one cannot be trained on; the message names it.
    """
    steps = [step for step in dataset.pipeline.transforms if isinstance(step, (CheckedImage, CheckedAnnotations))]
    if not any(isinstance(step, CheckedImage) for step in steps):
        return 0, []
    sample = range(0, len(dataset), max(len(dataset) // SAMPLE, 1))[:SAMPLE]
    values: set[int] = set()
    for index in sample:
        results = dataset.get_data_info(index)
        for step in steps:
            results = step(results) if results is not None else None
        if results and 'gt_seg_map' in results:
            values.update(np.unique(results['gt_seg_map']).tolist())
    unlabelled = getattr(dataset, 'ignore_index', None)
    if unlabelled in values and len(values) <= 2:
        message = f'{len(sample)} label maps that were opened hold nothing but {sorted(values)}'
        return len(sample), [f'{type(dataset).__name__}: {message}, and {unlabelled} is "unlabelled": not trained on']
    return len(sample), []


def build_dataset(settings: ConfigDict, scope: str) -> Any:
    """Build the data set that settings describe, without loading anything.

    Raises:
        UserError: If it cannot be built.
    """
    import_modules_from_strings([f'{scope}.datasets'])
    with DATASETS.switch_scope_and_registry(scope) as registry:
        try:
            return registry.build({**settings, 'lazy_init': True})
        except BUILD_ERRORS as error:
            raise UserError(
                f'{type_name(settings)} cannot be built: {type(error).__name__}: {reason(error)}',
                _CORRECT,
            ) from error


def inspect_dataset(dataset: Any, evaluators: Any = None, settings: DataSettings = NO_CONFIG) -> str:
    """Check a data set: all of its entries, and a sample of its images and label maps.

    Args:
        dataset: As :func:`build_dataset` builds it.
        evaluators: Those that the config has for it, as for :func:`watch_loading`.
        settings: As for that.

    Returns:
        What was checked, in words.

    Raises:
        UserError: If something is missing, unreadable or not of the classes; the message names the first.
    """
    try:
        with watch_loading(evaluators=evaluators, settings=settings) as watched:
            dataset.full_init()
    except BUILD_ERRORS as error:
        raise UserError(
            f'{type(dataset).__name__} cannot be loaded: {type(error).__name__}: {reason(error)}', _CORRECT
        ) from error
    opened, notes = read_sample(dataset)
    return '; '.join([f'{len(dataset)} images, {opened} of them opened', *watched.notes, *notes])


def build_data(runner: Runner, splits: tuple[str, ...]) -> None:
    """Build the data sets now, where the run would do it, and check them; the log says what they skip.

    Args:
        runner: Its loops are built.
        splits: Those of ``train``, ``val`` and ``test`` that are used.

    Raises:
        UserError: If data cannot be loaded or are not what the config says; the message names the first.
    """
    for split in splits:
        try:
            evaluators = runner.cfg.get(f'{split}_evaluator')
            with watch_loading(split == 'train', evaluators, DataSettings(runner.cfg, split)) as watched:
                loop = getattr(runner, f'{split}_loop')
        except BUILD_ERRORS as error:
            raise UserError(
                f'{split} data cannot be loaded: {type(error).__name__}: {reason(error)}', _CORRECT
            ) from error
        watched.ground_truth.check_complete()
        check_loop(split, loop, runner.cfg)
        for dataset in watched.datasets:
            check_heads(runner.cfg, dataset.metainfo)
            watched.notes += read_sample(dataset)[1]
        for note in watched.notes:
            print_log(f'{split} data: {note}', logger='current', level=logging.WARNING)
