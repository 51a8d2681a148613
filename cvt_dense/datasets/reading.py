"""What is wrong with an image or its annotations, said in one line at the moment that they are read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from mmcv.transforms import LoadAnnotations, LoadImageFromFile
from mmengine import fileio
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from PIL import ExifTags, Image

from ..errors import UserError, reason
from .decoding import UNREADABLE, can_be_decoded, is_cut_jpeg, opened
from .settings import NO_CONFIG, DataSettings, Place

UNLABELLED = 255  # what mmseg's loader makes of labels that are not classes

Sample = dict[str, Any]


def check_while_reading(dataset: BaseDataset, may_skip: bool = False, settings: DataSettings = NO_CONFIG) -> None:
    """Let a data set name the file that is missing, damaged or contradicts its annotations.

    Args:
        dataset: Its pipeline is changed in place.
        may_skip: Where the config allows it (``ignore_empty`` of mmcv's ``LoadImageFromFile``), another image is drawn
            for one that cannot be read, and a line says so.
        settings: What the config calls the settings of its data, for messages.
    """
    steps = dataset.pipeline.transforms
    for index, step in enumerate(steps):
        if isinstance(step, LoadImageFromFile):
            steps[index] = CheckedImage(step, may_skip and step.ignore_empty)
        elif isinstance(step, LoadAnnotations):
            _check_zero_label(dataset, step, index, settings)
            labels = Labels(dataset, settings) if hasattr(dataset, 'reduce_zero_label') else None
            steps[index] = CheckedAnnotations(step, labels)


def _check_zero_label(dataset: Any, step: Any, index: int, settings: DataSettings) -> None:
    """Check that a data set of mmseg and its loader agree on what 0 is; else the loader stops at the first map."""
    own, loader = getattr(dataset, 'reduce_zero_label', None), getattr(step, 'reduce_zero_label', None)
    if type(step).__module__.startswith('mmseg') and None not in (own, loader) and bool(own) != bool(loader):
        raise UserError(
            f'reduce_zero_label is {own} in {type(dataset).__name__} and {loader} in the {type(step).__name__} of its '
            'pipeline',
            settings.change(f'pipeline.{index}.reduce_zero_label', bool(own), dataset),
        )


class CheckedImage:
    """A step of a pipeline that reads an image and checks that it is complete and of the size in its annotations."""

    def __init__(self, step: Callable[[Sample], Sample | None], may_skip: bool) -> None:
        self.step = step
        self.may_skip = may_skip

    def __call__(self, results: Sample) -> Sample | None:
        """Read the image.

        Raises:
            UserError: If it cannot be trained on.
        """
        try:
            return self._read(results)
        except UserError as error:
            if not self.may_skip:
                raise
            print_log(f'another image is drawn: {error}', logger='current')
            return None

    def _read(self, results: Sample) -> Sample:
        path = results['img_path']
        try:
            loaded = self.step(results)
        except Exception as error:  # decoders raise all kinds
            raise _unreadable(f'image {path}', error, self._content(path), _replace(results)) from error
        content = self._content(path)
        if loaded is None:  # whatever the error was, with ignore_empty
            fault = 'is cut off' if is_cut_jpeg(content) else _fault_of(path, content)
            raise UserError(f'image {path} {fault}', _replace(results))
        if is_cut_jpeg(content):
            raise UserError(f'image {path} is cut off', _replace(results))
        height, width = loaded['ori_shape']
        expected = results.get('height', height), results.get('width', width)
        if expected != (height, width):
            turned = _how_it_is_turned(content, (width, height)) if expected == (width, height) else ''
            raise UserError(
                f'image {path} is {width}x{height}{turned}; in the annotation file its width is {expected[1]}, its '
                f'height {expected[0]}',
                f'write "width": {width}, "height": {height} for image {results.get("img_id")!r} there, if its boxes '
                'are for this size',
            )
        return loaded

    def _content(self, path: str) -> bytes:
        return _content(path, self.step)


def _replace(results: Sample) -> str:
    """What to do about an image that cannot be read."""
    is_listed = 'img_id' in results
    return f'replace it, or remove {"image " + repr(results["img_id"]) if is_listed else "it"} from the data'


def _content(path: str, step: Any) -> bytes:
    """What is in a file, from wherever a step of a pipeline reads it; nothing if it cannot be read."""
    try:
        return bytes(fileio.get(path, backend_args=getattr(step, 'backend_args', None)))
    except Exception:  # clients of storage raise all kinds; the step itself has said, or will say, what it is
        return b''


def _how_it_is_turned(content: bytes, size: tuple[int, int]) -> str:
    """What an image's EXIF orientation has to do with its being read as of a size, (width, height)."""
    try:
        with opened(content) as image:
            is_to_be_turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
            was_turned = image.size != size
    except (*UNREADABLE, Image.DecompressionBombError):
        return ''
    if not is_to_be_turned:
        return ''
    return ', turned as its EXIF orientation says' if was_turned else ', not turned as its EXIF orientation says'


class Labels:
    """The labels that the maps of a data set may have.

    Args:
        dataset: One of mmseg.
        settings: What the config calls the settings of its data, for messages.
    """

    def __init__(self, dataset: BaseDataset, settings: DataSettings = NO_CONFIG) -> None:
        classes = dataset.metainfo.get('classes') or ()
        self.first = int(bool(dataset.reduce_zero_label))  # then 0 is "unlabelled", and 1 the first class
        self.count = len(dataset.label_map or classes)
        self.unlabelled = dataset.ignore_index
        self.known = np.zeros(256, bool)
        self.known[[*range(len(classes)), self.unlabelled, UNLABELLED]] = True
        self.cures = self._cures(dataset, settings)

    def check(self, path: str, labels: np.ndarray, size: tuple[int, int]) -> None:
        """Check a label map as mmseg's loader returns it.

        Raises:
            UserError: If it is not of the size of its image, (height, width), or has a value that is not a label.
        """
        if labels.ndim != 2:
            raise UserError(f'label map {path} is a colour picture', 'it has to have one channel, of class numbers')
        if labels.shape != size:
            raise UserError(
                f'label map {path} is {labels.shape[1]}x{labels.shape[0]}, its image {size[1]}x{size[0]}',
                "write it in its image's size",
            )
        known = self.known[labels]
        if not known.all():
            value = int(labels[~known].max()) + self.first
            raise UserError(
                f'label map {path} has the value {value}, and the labels of {self.count} '
                f'classes are {self.first} to {self.count - 1 + self.first} ({self.unlabelled} is "unlabelled")',
                self.cures['from 1' if value == self.count and not self.first else 'more'],
            )

    def _cures(self, dataset: BaseDataset, settings: DataSettings) -> dict[str, str]:
        """What to do about values above those of the classes; said now, since workers know no config."""
        labels = f'write {self.unlabelled} in place of values that are no class'
        more = settings.change('metainfo.classes', Place('(NAME, …)'), everywhere=True)
        from_1 = settings.label_from_1(dataset)
        return {
            'more': f'{labels}, or name all classes: {more}',
            'from 1': f'if 0 is "unlabelled": {from_1}; else {labels}, or name all classes: {more}',
        }


class CheckedAnnotations:
    """A step of a pipeline that reads annotations and checks that label maps fit their images and classes."""

    def __init__(self, step: Callable[[Sample], Sample], labels: Labels | None) -> None:
        self.step = step
        self.labels = labels

    def __call__(self, results: Sample) -> Sample:
        """Read the annotations.

        Raises:
            UserError: If they cannot be trained on.
        """
        path = results.get('seg_map_path')
        if self.labels and path:
            check_depth(path, _content(path, self.step))
        try:
            loaded = self.step(results)
        except Exception as error:  # decoders and pycocotools raise all kinds
            what = f'label map {path}' if path else f'annotation of {results["img_path"]}'
            cure = 'replace it' if path else f'correct or remove the annotations of image {results.get("img_id")!r}'
            raise _unreadable(what, error, _content(path, self.step) if path else b'', cure) from error
        if self.labels and path:
            self.labels.check(path, loaded['gt_seg_map'], loaded['ori_shape'])
        return loaded


def check_depth(path: str, content: bytes) -> None:
    """Check that the values of a label map fit into 8 bits; mmseg's loader takes their remainder by 256.

    Raises:
        UserError: If they do not.
    """
    try:
        with opened(content) as image:
            highest = image.getextrema()[1] if image.mode[0] in 'IF' else 0
    except (*UNREADABLE, Image.DecompressionBombError):  # if it can be read, the loader says
        return
    if highest > UNLABELLED:
        raise UserError(
            f'label map {path} has the value {highest}; labels go up to {UNLABELLED}',
            'number classes from 0, in 8 bits',
        )


def _unreadable(what: str, error: Exception, content: bytes, cure: str) -> UserError:
    """An error of reading a file; that it is damaged is said only if Pillow cannot read it either."""
    if isinstance(error, FileNotFoundError):
        return UserError(f'{what} does not exist', cure)
    kind = 'is damaged' if _is_damaged(content, error) else 'cannot be read'
    return UserError(f'{what} {kind}: {type(error).__name__}: {reason(error)}', cure)


def _fault_of(path: str, content: bytes) -> str:
    """Why an image could not be read, of which the loader says nothing."""
    if content:
        return 'is damaged' if _is_damaged(content, ValueError()) else 'cannot be read'
    return 'is empty' if os.path.isfile(path) else 'is missing or cannot be fetched'


def _is_damaged(content: bytes, error: Exception) -> bool:
    if not content:  # an empty file, which decoders refuse, or one that could not be fetched
        return not isinstance(error, (OSError, ImportError, KeyError))
    return not can_be_decoded(content)
