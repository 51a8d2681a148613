"""What an annotation file in COCO's format has to hold, and what mmdet silently skips in it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError, reason

_THREE_POINTS = 6  # numbers in the least polygon

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """What annotations are read for.

    Args:
        masks: Masks, too, not boxes alone.
        rle: Masks may be run-length encoded; mmdet without ``poly2mask`` ignores those.
        evaluation: pycocotools compares predictions with them; else they are trained on.
        skip_empty: Images without annotations of the classes are not trained on.
        min_size: Nor are images with a side below this.
    """

    masks: bool = False
    rle: bool = True
    evaluation: bool = False
    skip_empty: bool = False
    min_size: int = 0


@dataclass(frozen=True)
class Found:
    """How much a run takes from an annotation file, and a line for each kind of thing that is skipped."""

    annotations: int
    images: int
    notes: tuple[str, ...]


def read_annotations(path: Path) -> dict[str, Any]:
    """The content of an annotation file in COCO's format.

    Raises:
        UserError: If it is damaged or of another format.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is damaged: {reason(error)}') from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path} is not in COCO's format: it has no list {key!r}")
    return content


def check_annotations(path: Path, content: Entry, classes: Sequence[str], use: Use) -> Found:
    """Check an annotation file, some microseconds an entry.

    What mmdet skips is counted; what would be read wrongly, or stop the run later, is refused.

    Args:
        path: The file, for messages.
        content: As :func:`read_annotations` returns it.
        classes: Those that a config names, in its order.
        use: What for.

    Raises:
        UserError: If an entry lacks something or contradicts another, or nothing is left to train on.
    """
    categories = _by_id(path, 'categories', content['categories'], _CATEGORY)
    wanted = _check_classes(path, list(categories.values()), classes)
    images = _by_id(path, 'images', content['images'], _IMAGE)
    annotations = _by_id(path, 'annotations', content['annotations'], _ANNOTATION)
    skipped: Counter[str] = Counter()
    count, annotated = 0, set()
    for annotation in annotations.values():
        image = images.get(annotation['image_id'])
        if image is None:
            skipped['annotations skipped because their image is not listed'] += 1
        elif annotation['category_id'] not in categories:
            skipped['annotations skipped because their category is not listed'] += 1
        elif annotation['category_id'] in wanted:
            annotated.add(image['id'])  # mmdet counts skipped ones too
            fault = None if use.evaluation else _fault(annotation, image)
            ignored = _check_mask(path, annotation, image, use) if use.masks and not fault else None
            if use.evaluation and 'iscrowd' not in annotation:
                raise UserError(f"{path}: annotation {annotation['id']} lacks 'iscrowd' (0 or 1): evaluation needs it")
            if fault or ignored:
                skipped[fault or ignored] += 1
            count += not (fault or ignored)
    read = [image for image in images.values() if not use.skip_empty or image['id'] in annotated]
    large = [image for image in read if min(image['width'], image['height']) >= use.min_size]
    skipped['images skipped because they have no annotation of the classes'] = len(images) - len(read)
    skipped[f'images skipped because a side is below min_size={use.min_size}'] = len(read) - len(large)
    notes = tuple(f'{path}: {why}: {number}' for why, number in skipped.items() if number)
    if not use.evaluation and not (count and large):
        because = f' ({"; ".join(note.removeprefix(f"{path}: ") for note in notes)})' if notes else ''
        raise UserError(f'{path} has no annotation of the classes {some(classes)} to train on{because}')
    return Found(count, len(large), notes)


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ', '.join(names[:5]) + (', …' if len(names) > 5 else '')


def _is_finite(*values: float) -> bool:
    return math.isfinite(sum(values))


#: What the fields of an entry have to be: functions that return False, or raise an error, for what they may not be.
_CATEGORY: dict[str, Callable[[Any], object]] = dict(id=hash, name=str.__len__)
_IMAGE: dict[str, Callable[[Any], object]] = dict(
    id=hash,
    file_name=str.__len__,
    height=lambda value: _is_finite(value) and value > 0,
    width=lambda value: _is_finite(value) and value > 0,
)
_ANNOTATION: dict[str, Callable[[Any], object]] = dict(
    id=hash,
    image_id=hash,
    category_id=hash,
    bbox=lambda value: len(value) == 4 and _is_finite(*value),
    area=_is_finite,
)


def _by_id(
    path: Path, kind: str, entries: Sequence[Any], fields: Mapping[str, Callable[[Any], object]]
) -> dict[Hashable, Entry]:
    """Entries by their ids, which all differ, each with the fields that it has to have."""
    by_id: dict[Hashable, Entry] = {}
    for number, entry in enumerate(entries):
        for field, check in fields.items():
            try:
                right = check(entry[field]) is not False
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
                right = False
            if not right:
                value = f'{entry[field]!r:.60}' if isinstance(entry, dict) and field in entry else 'missing'
                raise UserError(f'{path}: {kind}[{number}].{field} is {value}')
        if entry['id'] in by_id:
            raise UserError(f'{path}: {kind}[{number}].id is {entry["id"]!r}, which another one has already')
        by_id[entry['id']] = entry
    return by_id


def _check_classes(path: Path, categories: Sequence[Entry], classes: Sequence[str]) -> set[Hashable]:
    """The ids of the categories that are classes; mmdet numbers classes in the order of the file, whatever theirs."""
    if isinstance(classes, str):
        raise UserError(
            f'metainfo.classes is the string {classes!r}; of one class it is ({classes!r},), with the comma'
        )
    names = [category['name'] for category in categories]
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise UserError(f'{path} has no category {unknown[0]!r}, one of the classes; it has {some(names)}')
    in_file = [name for name in names if name in classes]
    if in_file != list(classes):
        twice = next((name for name in in_file if in_file.count(name) > 1), None)
        raise UserError(
            f'{path} has two categories {twice!r}'
            if twice
            else f'{path} has its categories in another order, in which mmdet numbers them; '
            f'set metainfo.classes to ({", ".join(map(repr, in_file))})'
        )
    return {category['id'] for category in categories if category['name'] in classes}


def _fault(annotation: Entry, image: Entry) -> str | None:
    """Why mmdet does not train on an annotation, if it does not."""
    x, y, w, h = annotation['bbox']
    if annotation.get('ignore'):
        return 'annotations skipped because they are marked "ignore"'
    if annotation['area'] <= 0 or w < 1 or h < 1:
        return 'annotations skipped because their area is 0 or a side of their box is below a pixel'
    if min(x + w, image['width']) <= max(x, 0) or min(y + h, image['height']) <= max(y, 0):
        return 'annotations skipped because their box is outside of the image'
    return None


def _check_mask(path: Path, annotation: Entry, image: Entry, use: Use) -> str | None:
    """Why mmdet ignores an annotation's region instead of training on it, if it does."""
    name = f'{path}: annotation {annotation["id"]}'
    mask = annotation.get('segmentation')
    if not mask:
        raise UserError(f"{name} has no 'segmentation', and the config reads masks")
    if isinstance(mask, dict) and 'counts' in mask:
        size = [image['height'], image['width']]
        if mask.get('size') != size:
            raise UserError(f'{name} has a segmentation of size {mask.get("size")}, and its image is {size}')
        return None if use.rle else 'regions ignored because they are run-length encoded and poly2mask=False'
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        raise UserError(f'{name} has a segmentation that is neither a list of polygons nor run-length encoded')
    polygons = [polygon for polygon in mask if len(polygon) >= _THREE_POINTS and len(polygon) % 2 == 0]
    if use.evaluation and mask[:1] != polygons[:1]:
        raise UserError(f'{name} has a polygon with fewer than three points, which evaluation cannot read')
    return None if polygons else 'regions ignored because none of their polygons has three points'
