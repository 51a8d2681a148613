"""What an annotation file in COCO's format has to hold, and what mmdet silently skips in it."""

from __future__ import annotations

import json
import locale
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import Any

from mmengine import fileio

from ..errors import UserError, reason
from ..registry import each_evaluator, type_name
from .masks import NUMBERS, MaskCheck, correct, far
from .paths import has_backend
from .settings import NO_CONFIG, DataSettings

_THREE_POINTS = 6  # numbers in the least polygon
_MANY = 20  # categories, of which a config may well name some
_LARGEST_AREA = 1e10  # pycocotools leaves out what is larger

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """What annotations are read for.

    Args:
        masks: Masks, too, not boxes alone.
        rle: Masks may be run-length encoded; mmdet without ``poly2mask`` ignores those.
        evaluation: Predictions are made for them; else they are trained on.
        compared: Predictions are compared with them, not written alone; with ``evaluation``.
        by_file: pycocotools reads the file itself and compares with what stands there, not with what mmdet read.
        as_text: An evaluator opens the file as text.
        skip_empty: Images without annotations of the classes are not trained on.
        min_size: Nor are images with a side below this.
    """

    masks: bool = False
    rle: bool = True
    evaluation: bool = False
    compared: bool = True
    by_file: bool = True
    as_text: bool = True
    skip_empty: bool = False
    min_size: int = 0


@dataclass(frozen=True)
class Found:
    """How much a run takes from an annotation file, and a line for each kind of thing that is skipped."""

    annotations: int
    images: int
    notes: tuple[str, ...]


def coco_metrics(evaluators: Any) -> list[Entry]:
    """Those of a config's evaluators that are mmdet's ``CocoMetric``."""
    return [evaluator for evaluator in each_evaluator(evaluators) if type_name(evaluator) == 'CocoMetric']


def for_evaluation(use: Use, path: str, evaluators: Any) -> Use:
    """What evaluators ask of an annotation file beside what the data set asks.

    Args:
        use: What the data set reads it for.
        path: The data set's file.
        evaluators: As a config has them; None stands for a ``CocoMetric`` that reads the file.
    """
    if evaluators is None:
        return replace(use, evaluation=True)
    metrics = coco_metrics(evaluators)  # what others need is theirs to say
    comparing = [metric for metric in metrics if not metric.get('format_only')]
    readers = [metric for metric in metrics if _is_same(metric.get('ann_file'), path)]
    return replace(
        use,
        masks=use.masks or any('segm' in metric.get('metric', ()) for metric in readers if metric in comparing),
        evaluation=True,
        compared=any(metric.get('ann_file') is None or metric in readers for metric in comparing),
        by_file=any(metric in comparing for metric in readers),
        as_text=bool(readers),
    )


def _is_same(file: str | None, other: str) -> bool:
    return file is not None and (file == other or Path(file).resolve() == Path(other).resolve())


class GroundTruth:
    """The files that the evaluators of data sets compare with, where they are not the data sets' own.

    Args:
        evaluators: As a config has them.
        settings: What the config calls its settings.
    """

    def __init__(self, evaluators: Any, settings: DataSettings = NO_CONFIG) -> None:
        self._settings = settings
        self._metrics = [metric for metric in coco_metrics(evaluators) if metric.get('ann_file') is not None]
        self._listed: dict[str, set[Hashable]] = {}  # images of each file
        self._loaded: set[Hashable] = set()  # images of the data sets

    def check(self, path: str, content: Entry, classes: Sequence[str]) -> list[str]:
        """Check the files, before the evaluators open them.

        Args:
            path: A data set's file, for messages.
            content: What is in it.
            classes: Those of the data set.

        Returns:
            A line for each kind of thing that is skipped in them.

        Raises:
            UserError: If one is missing, cannot be read or is not about the data set's images and classes.
        """
        notes: list[str] = []
        images = [image['id'] for image in content['images']]
        self._loaded.update(images)
        for metric in self._metrics:
            file = str(metric['ann_file'])
            if _is_same(file, path):
                continue
            if file not in self._listed:
                notes += self._read(file, metric, classes, path)
            missing = next((image for image in images if image not in self._listed[file]), None)
            if missing is not None:
                raise UserError(
                    f"{file}, the evaluator's ann_file, does not list image {missing!r} of {path}",
                    self._settings.change_evaluator(ann_file=path),
                )
        return notes

    def _read(self, file: str, metric: Entry, classes: Sequence[str], path: str) -> tuple[str, ...]:
        use, backend_args = for_evaluation(Use(), file, [metric]), metric.get('backend_args')
        if '://' not in file and not has_backend(backend_args) and not Path(file).is_file():
            raise UserError(
                f"the evaluator's annotation file {file} does not exist",
                self._settings.change_evaluator(ann_file=path),
            )
        content = read_annotations(file, use, backend_args=backend_args, settings=self._settings)
        notes = check_annotations(file, content, classes, use, self._settings).notes
        self._listed[file] = {image['id'] for image in content['images']}
        return notes

    def check_complete(self) -> None:
        """Check, when all data sets are loaded, that the files list no other images than they do.

        Raises:
            UserError: If one does: nothing is predicted for those, and the AP would be too low.
        """
        for file, listed in self._listed.items():
            others = listed - self._loaded
            if others and self._loaded:
                raise UserError(
                    f"{file}, the evaluator's ann_file, lists {len(others)} images that the data set does not have: "
                    'the AP would be too low',
                    self._settings.change_evaluator(ann_file='FILE'),
                )


def read_annotations(
    path: Path | str,
    use: Use = Use(),
    name: str | None = None,
    backend_args: Mapping[str, Any] | None = None,
    settings: DataSettings = NO_CONFIG,
) -> dict[str, Any]:
    """The content of an annotation file in COCO's format.

    Args:
        path: The file, or an address that mmengine can read.
        use: What for: without comparing, as for COCO's test images, the file may have no annotations.
        name: What messages call it, if that is another: what is elsewhere is read from a copy.
        backend_args: Those of mmengine's file client.
        settings: What the config calls its settings.

    Raises:
        UserError: If it cannot be read, or is of another format or encoded as the evaluator cannot read it.
    """
    name = name or str(path)
    try:
        raw = fileio.get(str(path), backend_args=backend_args)
        content = json.loads(raw)
    except json.JSONDecodeError as error:
        raise UserError(f'{name} is not valid JSON: {reason(error)}', _EXPORT) from error
    except Exception as error:  # clients of storage raise all kinds
        raise UserError(f'{name} cannot be read: {type(error).__name__}: {reason(error)}', _EXPORT) from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            if key == 'annotations' and use.evaluation and key not in content:
                if not use.compared:
                    continue
                alone = settings.change_evaluator(format_only=True, outfile_prefix='PATH')
                raise UserError(
                    f"{name} has no list 'annotations', as files of test images, so there is nothing to evaluate",
                    f'to write predictions alone: {alone}',
                )
            raise UserError(f"{name} is not in COCO's format: it has no list {key!r}", _EXPORT)
    if use.evaluation and use.as_text:
        _check_encoding(name, raw)
    return content


def _check_encoding(path: Path | str, raw: bytes) -> None:
    """Refuse what JSON allows and evaluators cannot read: they open the file as text of the locale's encoding."""
    encoding = json.detect_encoding(raw)
    if encoding != 'utf-8':
        what = 'begins with a byte order mark' if encoding == 'utf-8-sig' else f'is encoded in {encoding}'
        raise UserError(f'{path} {what}, which the evaluator cannot read', 'save it as UTF-8 without a byte order mark')
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f'{path} is not UTF-8, which the evaluator reads: {reason(error)}', 'save it as UTF-8'
        ) from error
    opened_as = locale.getpreferredencoding(False)
    if not raw.isascii() and opened_as.lower().replace('-', '') != 'utf8':
        raise UserError(f'{path} is UTF-8, and the evaluator would read it as {opened_as}', 'set PYTHONUTF8=1')


def check_annotations(
    path: Path | str, content: Entry, classes: Sequence[str], use: Use, settings: DataSettings = NO_CONFIG
) -> Found:
    """Check an annotation file, some microseconds an entry.

    What mmdet skips is counted; what would be read wrongly, or stop the run later, is refused.

    Args:
        path: The file, for messages.
        content: As :func:`read_annotations` returns it.
        classes: Those that a config names, in its order.
        use: What for.
        settings: What the config calls its settings.

    Raises:
        UserError: If an entry lacks something or contradicts another, or nothing is left to train on or to compare
            predictions with.
    """
    by_file = use.evaluation and use.compared and use.by_file
    ids = _WHOLE if by_file else {}
    categories = _by_id(path, 'categories', content['categories'], _CATEGORY | ids)
    wanted = _check_classes(path, list(categories.values()), classes, settings)
    images = _by_id(path, 'images', content['images'], _IMAGE | ids)
    more = dict.fromkeys(('image_id', 'category_id'), _is_whole) | _REQUIRED if by_file else {}
    annotations = _by_id(path, 'annotations', content.get('annotations', ()), _ANNOTATION | ids | more)
    skipped: Counter[str] = Counter()
    passed: Counter[str] = Counter()  # read, and neither trained on nor compared with
    count, annotated, masks = 0, set(), MaskCheck(path)
    for annotation in annotations.values():
        image = images.get(annotation['image_id'])
        if image is None:
            skipped['annotations skipped because their image is not listed'] += 1
        elif annotation['category_id'] not in categories:
            skipped['annotations skipped because their category is not listed'] += 1
        elif annotation['category_id'] in wanted:
            annotated.add(image['id'])  # mmdet counts skipped ones too
            _check_box(path, annotation, image)
            fault = None if by_file else _fault(annotation, image)
            if use.masks and not fault and not annotation.get('segmentation'):
                has_masks = any(other.get('segmentation') for other in annotations.values())
                raise _no_mask(path, annotation['id'], has_masks, settings)
            ignored = _check_mask(path, annotation, image, use, masks) if use.masks and not fault else None
            if by_file and annotation['id'] == 0:
                raise UserError(
                    f'{path} has an annotation with the id 0, which evaluation takes for "no annotation", and the AP '
                    'would be too low',
                    'number annotations from 1',
                )
            if fault or ignored:
                skipped[fault or ignored] += 1
            elif annotation.get('iscrowd'):
                passed['annotations are of crowds (iscrowd=1)'] += 1
            elif by_file and not 0 <= annotation['area'] <= _LARGEST_AREA:
                passed['annotations have an area below 0 or above 1e10'] += 1
            else:
                count += 1
        else:
            passed['annotations are of other classes'] += 1
    masks.finish()
    read = [image for image in images.values() if not use.skip_empty or image['id'] in annotated]
    large = [image for image in read if min(image['width'], image['height']) >= use.min_size]
    skipped['images skipped because they have no annotation of the classes'] = len(images) - len(read)
    skipped[f'images skipped because a side is below min_size={use.min_size}'] = len(read) - len(large)
    notes = tuple(f'{path}: {why}: {number}' for why, number in skipped.items() if number)
    if not (count and large) and (use.compared or not use.evaluation):
        reasons = {why: number for why, number in (skipped | passed).items() if number}
        aim = 'to compare predictions with' if use.evaluation else 'to train on'
        because = f' ({"; ".join(f"{why}: {number}" for why, number in reasons.items())})' if reasons else ''
        raise UserError(
            f'{path} has no annotation of the classes {some(classes)} {aim}{because}',
            _how_to_have_some(list(reasons), annotations.values(), categories, settings),
        )
    return Found(count, len(large), notes)


#: What an annotation has to be for mmdet to take it, by why it does not.
_TAKEN = {
    'their image is not listed': "let each image_id be the id of one of the file's images",
    'their category is not listed': "let each category_id be the id of one of the file's categories",
    'marked "ignore"': 'set "ignore" of annotations to 0',
    'their area is 0': 'write each bbox as x, y, width and height in pixels, and the area in pixels',
    'their box is outside': 'write each bbox as x, y, width and height in pixels of its image',
    'of crowds': 'set iscrowd of annotations of single objects to 0',
    'an area below 0': 'write areas in pixels',
    'has three points': 'write each segmentation as polygons [[x, y, x, y, x, y, …]] of three points or more',
    'poly2mask=False': 'leave poly2mask out of LoadAnnotations',
}


def _how_to_have_some(
    reasons: Sequence[str], annotations: Iterable[Entry], categories: Mapping[Hashable, Entry], settings: DataSettings
) -> str:
    """What to do where nothing is left to train on, by the first reason why."""
    first = next((cure for reason in reasons for part, cure in _TAKEN.items() if part in reason), '')
    if first:
        return first
    annotated = {annotation['category_id'] for annotation in annotations}
    if annotated:
        names = tuple(category['name'] for identity, category in categories.items() if identity in annotated)
        small = any('min_size' in reason for reason in reasons)
        return (
            settings.change('filter_cfg.min_size', 1)
            if small
            else settings.change('metainfo.classes', names, everywhere=True)
        )
    return 'write annotations into it'


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ', '.join(names[:5]) + (', …' if len(names) > 5 else '')


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers: pycocotools converts words, too, and reads others as they come."""
    return NUMBERS.issuperset(map(type, values)) and math.isfinite(sum(values))


def _is_whole(value: Any) -> bool:
    """Whether evaluation can look an id up: pycocotools sorts ids in arrays, in which others change their type."""
    return type(value) is int and -(2**63) <= value < 2**63


def _is_flag(value: Any) -> bool:
    """Whether it is 0, 1, False or True; the word "0" would count as true."""
    return isinstance(value, (int, float)) and value in (0, 1)


#: What the fields of an entry have to be: functions that return False, or raise an error, for what they may not be.
_CATEGORY: dict[str, Callable[[Any], object]] = dict(id=hash, name=str.__len__)
_IMAGE: dict[str, Callable[[Any], object]] = dict(
    id=hash,
    file_name=str.__len__,
    height=lambda value: _are_numbers((value,)) and value > 0,
    width=lambda value: _are_numbers((value,)) and value > 0,
)
_ANNOTATION: dict[str, Callable[[Any], object]] = dict(
    id=hash,
    image_id=hash,
    category_id=hash,
    bbox=lambda value: len(value) == 4 and _are_numbers(value),
    area=lambda value: _are_numbers((value,)),
)
#: The same where evaluation asks for more.
_WHOLE: dict[str, Callable[[Any], object]] = dict(id=_is_whole)
_REQUIRED: dict[str, Callable[[Any], object]] = dict(iscrowd=_is_flag)
#: Fields that may be missing or null.
_OPTIONAL = ('iscrowd', 'ignore')
_FLAGS = (None, 0, 1)
_HAVE_TO_BE = {_is_whole: 'evaluation needs a whole number of 64 bits', _is_flag: 'it has to be 0 or 1'}
_FIELDS = {
    'area': 'a number of pixels',
    'bbox': 'x, y, width and height in pixels, [x, y, w, h]',
    'category_id': 'the id of a category',
    'file_name': 'the path of an image in the folder of images',
    'height': 'a number of pixels above 0',
    'id': 'a number of its own',
    'image_id': 'the id of an image',
    'name': 'a name',
    'width': 'a number of pixels above 0',
}
_EXPORT = "export it again, in COCO's format: an object with the lists images, annotations and categories"


def _by_id(
    path: Path | str, kind: str, entries: Sequence[Any], fields: Mapping[str, Callable[[Any], object]]
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
                cure = _HAVE_TO_BE.get(check) or f'it has to be {_FIELDS[field]}'
                cure += f', or remove annotations[{number}]' if kind == 'annotations' else ''
                raise UserError(f'{path}: {kind}[{number}].{field} is {value}', cure)
        for field in _OPTIONAL:
            if entry.get(field) not in _FLAGS:
                raise UserError(f'{path}: {kind}[{number}].{field} is {entry[field]!r:.60}', _HAVE_TO_BE[_is_flag])
        if entry['id'] in by_id:
            raise UserError(
                f'{path}: {kind}[{number}].id is {entry["id"]!r}, which another one has already',
                f'it has to be {_FIELDS["id"]}, or remove {kind}[{number}]',
            )
        by_id[entry['id']] = entry
    return by_id


def _check_classes(
    path: Path | str, categories: Sequence[Entry], classes: Sequence[str], settings: DataSettings
) -> set[Hashable]:
    """The ids of the categories that are classes; mmdet numbers classes in the order of the file, whatever theirs."""
    if isinstance(classes, str):
        raise UserError(
            f'classes is the string {classes!r}, and not a tuple of one class, which has a comma',
            settings.change('metainfo.classes', (classes,), everywhere=True),
        )
    names = [category['name'] for category in categories]
    in_file = [name for name in names if name in classes]
    unknown = [name for name in classes if name not in names]
    twice = next((name for name in in_file if in_file.count(name) > 1), None)
    if twice:
        raise UserError(f'{path} has two categories {twice!r}', 'rename one of them, or make them one')
    if unknown:
        others = [name for name in names if name not in in_file]
        alike = {name: _alike(name, others) for name in unknown}
        meant = {*in_file, *chain.from_iterable(alike.values())}
        is_clear = all(alike.values()) or (meant and len(names) > _MANY)
        right = [name for name in names if name in meant] if is_clear else names
        raise UserError(
            f'{path} has no category {unknown[0]!r}, one of the classes; it has {some(names)}',
            _right_classes(path, right, classes, settings),
        )
    if in_file != list(classes):
        raise UserError(
            f'{path} has its categories in another order, in which mmdet numbers them',
            _right_classes(path, in_file, classes, settings),
        )
    return {category['id'] for category in categories if category['name'] in classes}


def _alike(name: str, names: Sequence[str]) -> list[str]:
    """Names that may be meant by one."""
    lower = {other.lower(): other for other in names}
    return [lower[found] for found in get_close_matches(name.lower(), lower, n=1)]


def _right_classes(path: Path | str, right: Sequence[str], classes: Sequence[str], settings: DataSettings) -> str:
    """How to have the same classes in a config and in its files: where another file agrees with it, this one is odd."""
    for names in settings.categories_elsewhere(str(path)):
        if [name for name in names if name in classes] == list(classes):
            return f'let the categories of {path} be {", ".join(classes)}, in this order, as in the other splits'
    return settings.change('metainfo.classes', tuple(right), everywhere=True)


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


def _check_box(path: Path | str, annotation: Entry, image: Entry) -> None:
    limit, box = far(image['height'], image['width']), annotation['bbox']
    if min(box) < -limit or max(box) > limit:
        raise UserError(
            f'{path}: annotation {annotation["id"]} has the box {box!r:.60}, far outside of its image, which is '
            f'{image["width"]}x{image["height"]}',
            f'correct its bbox, or remove annotation {annotation["id"]}',
        )


def _no_mask(path: Path | str, identity: Any, has_masks: bool, settings: DataSettings) -> UserError:
    fault = f"{path}: annotation {identity} has no 'segmentation', and the config reads masks"
    if has_masks:
        return UserError(fault, f'write one, or remove annotation {identity}')
    return UserError(f'{fault}; nor has any other', settings.without_masks())


def _check_mask(path: Path | str, annotation: Entry, image: Entry, use: Use, masks: MaskCheck) -> str | None:
    """Why mmdet ignores an annotation's region instead of training on it, if it does.

    What is not ignored is added to ``masks``.
    """
    name, cure = f'{path}: annotation {annotation["id"]}', correct(annotation['id'])
    mask = annotation['segmentation']
    compared = use.evaluation and use.compared
    if isinstance(mask, dict) and 'counts' in mask:
        size = [image['height'], image['width']]
        if mask.get('size') != size or not {int}.issuperset(map(type, mask['size'])):
            raise UserError(f'{name} has a segmentation of size {mask.get("size")}, and its image is {size}', cure)
        if not use.rle and not compared:
            return 'regions ignored because they are run-length encoded and poly2mask=False'
        masks.add_lengths(annotation['id'], mask['counts'], size[0] * size[1])
        return None
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        raise UserError(f'{name} has a segmentation that is neither a list of polygons nor run-length encoded', cure)
    polygons = [polygon for polygon in mask if len(polygon) >= _THREE_POINTS and len(polygon) % 2 == 0]
    if compared and mask[:1] != polygons[:1]:
        raise UserError(f'{name} has a polygon with fewer than three points, which evaluation cannot read', cure)
    limit = far(image['height'], image['width'])
    masks.add_polygons(annotation['id'], mask if compared else polygons, limit)
    return None if polygons else 'regions ignored because none of their polygons has three points'
