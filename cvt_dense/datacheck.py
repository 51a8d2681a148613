"""Look into the data of a config, as far as a sample shows, before a run finds out what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS
from mmengine.utils import import_modules_from_strings
from PIL import Image

from .checkpoints.files import reason
from .cli import UserError

SAMPLE = 20  # images of each data set that are opened


def build_dataset(settings: ConfigDict, scope: str) -> Any:
    """Build the data set that settings describe, without loading anything.

    Raises:
        UserError: If it cannot be built.
    """
    import_modules_from_strings([f'{scope}.datasets'])
    with DATASETS.switch_scope_and_registry(scope) as registry:
        try:
            return registry.build({**settings, 'pipeline': [], 'lazy_init': True})
        except (KeyError, TypeError, ValueError) as error:  # what registries and constructors raise for wrong settings
            raise UserError(f'{settings.type} cannot be built: {type(error).__name__}: {reason(error)}') from error


def inspect_dataset(dataset: Any) -> str:
    """Look into a data set: the whole annotation file, and a sample of the images and label maps.

    Args:
        dataset: As :func:`build_dataset` builds it.

    Returns:
        What was looked at, in words.

    Raises:
        UserError: If something is missing, unreadable or not of the classes; the message names the first.
    """
    if hasattr(dataset, 'COCOAPI'):
        return _inspect_coco(dataset)
    if hasattr(dataset, 'seg_map_suffix') and hasattr(dataset, 'label_map'):
        return _inspect_label_maps(dataset)
    return f'files are there; {type(dataset).__name__} is not looked into'


def _inspect_coco(dataset: Any) -> str:
    path, classes = Path(dataset.ann_file), dataset.metainfo['classes']
    content = _read_json(path)
    ids = {category['name']: category['id'] for category in content['categories']}
    unknown = [name for name in classes if name not in ids]
    if unknown:
        raise UserError(f'{path} has no category {unknown[0]!r}, one of the classes; it has {_some(list(ids))}')
    wanted = {ids[name] for name in classes}
    count = sum(annotation['category_id'] in wanted for annotation in content['annotations'])
    if not count:
        raise UserError(f'{path} has no annotation of the classes {_some(list(classes))}')
    names = [entry['file_name'] for entry in content['images']]
    sample = _sample(names)
    for name in sample:
        read_image(Path(dataset.data_prefix['img']) / name)
    left = sorted(set(ids) - set(classes))
    aside = f'; categories that are no classes: {_some(left)}' if left else ''
    return f'{count} annotations, {len(names)} images, {len(sample)} of them opened{aside}'


def _read_json(path: Path) -> dict[str, Any]:
    """The content of an annotation file in COCO's format."""
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f'{path} is damaged: {reason(error)}') from error
    keys = ('images', 'annotations', 'categories')
    if not isinstance(content, dict) or any(not isinstance(content.get(key), list) for key in keys):
        raise UserError(f"{path} is not in COCO's format: it lacks one of the lists {', '.join(keys)}")
    return content


def _inspect_label_maps(dataset: Any) -> str:
    entries = dataset.load_data_list()
    if not entries:
        raise UserError(f'{dataset.data_prefix["img_path"]} holds no file *{dataset.img_suffix}')
    if not dataset.metainfo.get('classes') or 'seg_map_path' not in entries[0]:
        raise UserError('the data set is without metainfo.classes or data_prefix.seg_map_path')
    sample = _sample(entries)
    for entry in sample:
        image = read_image(Path(entry['img_path']))
        _check_labels(Path(entry['seg_map_path']), image.shape[:2], dataset)
    return f'{len(entries)} images, {len(sample)} of them opened with their label maps'


def _check_labels(path: Path, size: tuple[int, int], dataset: Any) -> None:
    """See whether a label map is of a size, and its values, as training will see them, are classes."""
    labels = read_image(path)
    if labels.ndim != 2:
        raise UserError(f'label map {path} is a colour picture; it has to have one channel, of class numbers')
    if labels.shape != size:
        raise UserError(f'label map {path} is {labels.shape[1]}x{labels.shape[0]}, its image {size[1]}x{size[0]}')
    classes = dataset.metainfo['classes']
    values = set(np.unique(labels).tolist())
    names = dataset.label_map or range(len(classes))
    first = int(bool(dataset.reduce_zero_label))  # then 0 is "unlabelled", and 1 the first class
    known = {label + first for label in names} | {0, dataset.ignore_index} if first else {*names, dataset.ignore_index}
    if values - known:
        raise UserError(
            f'label map {path} has the value {max(values - known)}, and the labels of {len(names)} classes are '
            f'{first} to {len(names) - 1 + first} ({dataset.ignore_index} is "unlabelled")'
        )


def read_image(path: Path) -> np.ndarray:
    """The pixels of an image, ``(H, W)`` or ``(H, W, C)``; of one with a palette, the numbers of its colours.

    Raises:
        UserError: If it is missing or damaged.
    """
    if not path.is_file():
        raise UserError(f'{path} does not exist')
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise UserError(f'{path} is damaged: {reason(error)}') from error


def _sample(entries: Sequence[Any]) -> list[Any]:
    """At most SAMPLE entries, spread over all of them."""
    step = max(len(entries) / SAMPLE, 1)
    return [entries[int(index * step)] for index in range(min(len(entries), SAMPLE))]


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (', …' if len(names) > 5 else '')


def heads_with_classes(cfg: Config) -> dict[str, int]:
    """Every ``num_classes`` in a config's model, by the path of what has it."""
    return dict(_walk(cfg.model, 'model'))


def _walk(node: Any, path: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, Mapping):
        if isinstance(node.get('num_classes'), int):
            yield path, node['num_classes']
        for key, value in node.items():
            yield from _walk(value, f'{path}.{key}')
    elif isinstance(node, (list, tuple)):
        for index, value in enumerate(node):
            yield from _walk(value, f'{path}.{index}')
