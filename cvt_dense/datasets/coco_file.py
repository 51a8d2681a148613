"""What an annotation file in COCO's format has to hold, and what mmdet silently skips in it."""

from __future__ import annotations

import json
import locale
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import UserError, reason
from ..registry import type_name

_THREE_POINTS = 6  # numbers in the least polygon
_LARGEST_AREA = 1e10  # pycocotools leaves out what is larger
#: How many times its larger side, of 1000 pixels at least, annotations may stick out of an image. Real ones do so by
#: some pixels; the memory that pycocotools takes for a polygon grows with its coordinates, until it crashes.
_FAR = 10
_WITHOUT_COMPARING = ('DumpDetResults', 'DumpProposals', 'DumpODVGResults')  # mmdet's evaluators that write files only

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
    return [evaluator for evaluator in _each(evaluators) if type_name(evaluator) == 'CocoMetric']


def _each(evaluators: Any) -> list[Entry]:
    """The evaluators of a config, which has one, or a list of them, or an ``Evaluator`` of some."""
    if isinstance(evaluators, Mapping) and 'metrics' in evaluators:
        evaluators = evaluators['metrics']
    given = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    return [evaluator for evaluator in given if isinstance(evaluator, Mapping)]


def for_evaluation(use: Use, path: str, evaluators: Any) -> Use:
    """What evaluators ask of an annotation file beside what the data set asks.

    Args:
        use: What the data set reads it for.
        path: The data set's file.
        evaluators: As a config has them; None stands for a ``CocoMetric`` that reads the file.
    """
    if evaluators is None:
        return replace(use, evaluation=True)
    comparing = [
        evaluator
        for evaluator in _each(evaluators)
        if not evaluator.get('format_only') and type_name(evaluator) not in _WITHOUT_COMPARING
    ]
    readers = [metric for metric in coco_metrics(evaluators) if _is_same(metric.get('ann_file'), path)]
    return replace(
        use,
        masks=use.masks or any('segm' in metric.get('metric', ()) for metric in readers if metric in comparing),
        evaluation=True,
        compared=bool(comparing),
        by_file=any(metric in comparing for metric in readers),
        as_text=bool(readers),
    )


def _is_same(file: str | None, other: str) -> bool:
    return file is not None and (file == other or Path(file).resolve() == Path(other).resolve())


def check_ground_truth(path: Path, content: Entry, classes: Sequence[str], evaluators: Any) -> tuple[str, ...]:
    """Check the files that evaluators compare with, where they are not the data set's.

    Args:
        path: The data set's file, for messages.
        content: What is in it.
        classes: Those of the data set.
        evaluators: As a config has them.

    Returns:
        A line for each kind of thing that is skipped in them.

    Raises:
        UserError: If one is missing, damaged or not about the data set's images and classes.
    """
    notes: list[str] = []
    for metric in coco_metrics(evaluators):
        file = metric.get('ann_file')
        if file is None or '://' in str(file) or _is_same(file, str(path)):
            continue
        theirs = Path(file)
        use = for_evaluation(Use(), file, [metric])
        if not theirs.is_file():
            raise UserError(f"the evaluator's annotation file {theirs} does not exist; set ann_file of the evaluator")
        truth = read_annotations(theirs, use)
        notes += check_annotations(theirs, truth, classes, use).notes
        listed = {image['id'] for image in truth['images']}
        missing = [image['id'] for image in content['images'] if image['id'] not in listed]
        if missing:
            raise UserError(
                f"{theirs}, the evaluator's ann_file, does not list image {missing[0]!r} of {path}; set ann_file of "
                "the evaluator to the data set's file"
            )
    return tuple(notes)


def read_annotations(path: Path, use: Use = Use()) -> dict[str, Any]:
    """The content of an annotation file in COCO's format.

    Args:
        path: The file.
        use: What for: without comparing, as for COCO's test images, the file may have no annotations.

    Raises:
        UserError: If it is damaged, of another format or encoded as the evaluator cannot read it.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {reason(error)}') from error
    except (ValueError, RecursionError) as error:
        raise UserError(f'{path} is damaged: {reason(error)}') from error
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            if key == 'annotations' and use.evaluation and key not in content:
                if not use.compared:
                    continue
                raise UserError(
                    f"{path} has no list 'annotations', as files of test images, so there is nothing to evaluate; to "
                    'write predictions alone, set format_only=True and outfile_prefix in the evaluator'
                )
            raise UserError(f"{path} is not in COCO's format: it has no list {key!r}")
    if use.evaluation and use.as_text:
        _check_encoding(path, raw)
    return content


def _check_encoding(path: Path, raw: bytes) -> None:
    """Refuse what JSON allows and evaluators cannot read: they open the file as text of the locale's encoding."""
    encoding = json.detect_encoding(raw)
    if encoding != 'utf-8':
        what = 'begins with a byte order mark' if encoding == 'utf-8-sig' else f'is encoded in {encoding}'
        raise UserError(f'{path} {what}, which the evaluator cannot read; save it as UTF-8 without a byte order mark')
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8, which the evaluator reads: {reason(error)}; save it as UTF-8') from error
    opened_as = locale.getpreferredencoding(False)
    if not raw.isascii() and opened_as.lower().replace('-', '') != 'utf8':
        raise UserError(f'{path} is UTF-8, and the evaluator would read it as {opened_as}; set PYTHONUTF8=1')


def check_annotations(path: Path, content: Entry, classes: Sequence[str], use: Use) -> Found:
    """Check an annotation file, some microseconds an entry.

    What mmdet skips is counted; what would be read wrongly, or stop the run later, is refused.

    Args:
        path: The file, for messages.
        content: As :func:`read_annotations` returns it.
        classes: Those that a config names, in its order.
        use: What for.

    Raises:
        UserError: If an entry lacks something or contradicts another, or nothing is left to train on or to compare
            predictions with.
    """
    by_file = use.evaluation and use.compared and use.by_file
    ids = _WHOLE if by_file else {}
    categories = _by_id(path, 'categories', content['categories'], _CATEGORY | ids)
    wanted = _check_classes(path, list(categories.values()), classes)
    images = _by_id(path, 'images', content['images'], _IMAGE | ids)
    more = dict.fromkeys(('image_id', 'category_id'), _is_whole) | _REQUIRED if by_file else {}
    annotations = _by_id(path, 'annotations', content.get('annotations', ()), _ANNOTATION | ids | more)
    skipped: Counter[str] = Counter()
    passed: Counter[str] = Counter()  # read, and neither trained on nor compared with
    count, annotated = 0, set()
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
            ignored = _check_mask(path, annotation, image, use) if use.masks and not fault else None
            if by_file and annotation['id'] == 0:
                raise UserError(
                    f'{path} has an annotation with the id 0, which evaluation takes for "no annotation", and the AP '
                    'would be too low; number annotations from 1'
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
    read = [image for image in images.values() if not use.skip_empty or image['id'] in annotated]
    large = [image for image in read if min(image['width'], image['height']) >= use.min_size]
    skipped['images skipped because they have no annotation of the classes'] = len(images) - len(read)
    skipped[f'images skipped because a side is below min_size={use.min_size}'] = len(read) - len(large)
    notes = tuple(f'{path}: {why}: {number}' for why, number in skipped.items() if number)
    if not (count and large) and (use.compared or not use.evaluation):
        reasons = '; '.join(f'{why}: {number}' for why, number in (skipped | passed).items() if number)
        aim = 'to compare predictions with' if use.evaluation else 'to train on'
        because = f' ({reasons})' if reasons else ''
        raise UserError(f'{path} has no annotation of the classes {some(classes)} {aim}{because}')
    return Found(count, len(large), notes)


def some(names: Sequence[str]) -> str:
    """The first of some names."""
    return ', '.join(names[:5]) + (', …' if len(names) > 5 else '')


_NUMBERS = frozenset((int, float))  # and not bool, which is a kind of int


def _are_numbers(values: Sequence[Any]) -> bool:
    """Whether all are finite numbers: pycocotools converts words, too, and reads others as they come."""
    return _NUMBERS.issuperset(map(type, values)) and math.isfinite(sum(values))


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
_HAVE_TO_BE = {_is_whole: 'evaluation needs a whole number of 64 bits', _is_flag: 'it has to be 0 or 1'}


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
                cure = f'; {_HAVE_TO_BE[check]}' if check in _HAVE_TO_BE else ''
                raise UserError(f'{path}: {kind}[{number}].{field} is {value}{cure}')
        for field in _OPTIONAL:
            if entry.get(field) is not None and not _is_flag(entry[field]):
                raise UserError(f'{path}: {kind}[{number}].{field} is {entry[field]!r:.60}; {_HAVE_TO_BE[_is_flag]}')
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


def _far(image: Entry) -> float:
    """The largest coordinate that annotations of an image may have."""
    return _FAR * max(image['height'], image['width'], 1000)


def _are_near(values: Sequence[Any], far: float) -> bool:
    """Whether all are numbers that are not above a bound."""
    return (
        _NUMBERS.issuperset(map(type, values))
        and -far <= min(values, default=0)
        and max(values, default=0) <= far
        and math.isfinite(sum(values))  # none is NaN, with which nothing compares
    )


def _check_box(path: Path, annotation: Entry, image: Entry) -> None:
    far, box = _far(image), annotation['bbox']
    if min(box) < -far or max(box) > far:
        raise UserError(
            f'{path}: annotation {annotation["id"]} has the box {box!r:.60}, far outside of its image, which is '
            f'{image["width"]}x{image["height"]}'
        )


def _check_mask(path: Path, annotation: Entry, image: Entry, use: Use) -> str | None:
    """Why mmdet ignores an annotation's region instead of training on it, if it does.

    What is not ignored is read by pycocotools in C, which does not look: it crashes, or takes all memory.
    """
    name = f'{path}: annotation {annotation["id"]}'
    mask = annotation.get('segmentation')
    if not mask:
        raise UserError(f"{name} has no 'segmentation', and the config reads masks")
    compared = use.evaluation and use.compared
    if isinstance(mask, dict) and 'counts' in mask:
        size = [image['height'], image['width']]
        if mask.get('size') != size:
            raise UserError(f'{name} has a segmentation of size {mask.get("size")}, and its image is {size}')
        if not use.rle and not compared:
            return 'regions ignored because they are run-length encoded and poly2mask=False'
        fault = _fault_of_lengths(mask['counts'], size[0] * size[1])
        if fault:
            raise UserError(f'{name} has a segmentation whose run lengths {fault}')
        return None
    if not isinstance(mask, list) or not all(isinstance(polygon, list) for polygon in mask):
        raise UserError(f'{name} has a segmentation that is neither a list of polygons nor run-length encoded')
    polygons = [polygon for polygon in mask if len(polygon) >= _THREE_POINTS and len(polygon) % 2 == 0]
    if compared and mask[:1] != polygons[:1]:
        raise UserError(f'{name} has a polygon with fewer than three points, which evaluation cannot read')
    far = _far(image)
    for polygon in mask if compared else polygons:
        if not _are_near(polygon, far):
            wrong = next((value for value in polygon if not _are_near([value], far)), polygon)
            raise UserError(
                f'{name} has a polygon with the coordinate {wrong!r:.40}; it has to be a number, {far:g} pixels at most'
            )
    return None if polygons else 'regions ignored because none of their polygons has three points'


def _fault_of_lengths(counts: Any, area: float) -> str | None:
    """What is wrong with the lengths of runs in a mask of an area, if something is."""
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts):
            return 'are not all whole numbers from 0'
        total = sum(counts)
    elif isinstance(counts, (str, bytes)):
        lengths = _decode_lengths(counts)
        if lengths is None:
            return 'are damaged: they are not what pycocotools encodes'
        total = int(lengths.sum())
    else:
        return f'are {counts!r:.40}; they have to be a list or a string'
    return None if total == area else f'sum up to {total}, and the image has {area} pixels'


def _decode_lengths(text: str | bytes) -> np.ndarray | None:
    """Lengths of runs as pycocotools encodes them, int64 of shape (runs,); None if it would not encode any so.

    Each is a number of base 32, least digit first, in characters from "0" whose sixth bit says that more digits come
    and whose fifth, in the last, that it is negative; from the fourth on, the last but one is subtracted (``maskApi.c``
    of pycocotools).
    """
    try:
        digits = np.frombuffer(text.encode('ascii') if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        return None
    if not len(digits) or digits.min() < 0 or digits.max() > 63:
        return None
    ends = np.flatnonzero(digits < 32)
    if not len(ends) or ends[-1] != len(digits) - 1:
        return None
    starts = np.concatenate(([0], ends[:-1] + 1))
    sizes = ends - starts + 1
    if sizes.max() > 7:  # 35 bits, and lengths have 32
        return None
    shifts = 5 * (np.arange(len(digits)) - np.repeat(starts, sizes))
    lengths = np.add.reduceat((digits & 31) << shifts, starts)
    lengths -= ((digits[ends] & 16) > 0) * (1 << 5 * sizes)
    lengths[1::2] = lengths[1::2].cumsum()
    lengths[2::2] = lengths[2::2].cumsum()
    return lengths if lengths.min() >= 0 else None
