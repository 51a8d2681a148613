"""Predict on many files: images in batches of one size, videos frame by frame, and go on after those that fail."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import cv2
import torch
from tqdm import tqdm

from ..errors import UserError, reason
from ..signals import Interrupted, signals
from .inputs import VIDEOS, name_outputs, printable
from .items import AnyPredictor, Item, Prediction, Skipped
from .output import Output, count_frames, make_even, open_writer


def predict_files(predictor: AnyPredictor, paths: list[Path], output: Output, batch_size: int = 1) -> int:
    """Predict on image and video files, and write pictures and JSON.

    Args:
        predictor: The model.
        paths: The files; their names and order decide those of what is written.
        output: Where predictions go; its JSON files are written however this ends.
        batch_size: Images at a time, as far as they are of one size.

    Returns:
        How many inputs had to be skipped; a line on stderr says why for each.

    Raises:
        Interrupted: If a signal said to stop, in a process that listens (see :mod:`cvt_dense.signals`):
            after the batch that it came in, with what was predicted until then written.
        OSError: If there is no space left.
    """
    run = Run(predictor, output, batch_size)
    named = list(zip(paths, name_outputs(paths)))
    _silence_readers()
    response, signals.response = signals.response, 'note'  # no picture is left half written
    try:
        run.images([(path, name) for path, name in named if path.suffix.lower() not in VIDEOS])
        for path, name in named:
            if path.suffix.lower() in VIDEOS and not signals.number:
                run.video(path, name)
    finally:
        output.save()
        signals.response = response
    if signals.number:
        where = f'pictures and JSON files of these are in {printable(output.folder)}'
        raise Interrupted(signals.number, f'{Interrupted(signals.number)} after {run.done_of(len(paths))}; {where}')
    return run.skipped


def choose_device(name: str | None) -> torch.device:
    """The device of that name, or the best there is.

    Raises:
        UserError: If torch cannot use it.
    """
    name = name or ('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        raise UserError(f'--device {name} cannot be used, --device cpu always can: {reason(error)}') from error
    return torch.device(name)


class Run:
    """Sends inputs through the model, and counts those that had to be skipped.

    Args:
        predictor: The model.
        output: Where its predictions go.
        batch_size: Images at a time, as far as they are of one size.
    """

    def __init__(self, predictor: AnyPredictor, output: Output, batch_size: int) -> None:
        self.skipped = 0
        self._done = 0
        self._part = ''
        self._predictor = predictor
        self._output = output
        self._batch_size = batch_size
        self._image_ids = count(1)

    def done_of(self, total: int) -> str:
        """How far it got, in words."""
        return f'{self._done} of {total} inputs{self._part}'

    def images(self, files: list[tuple[Path, str]]) -> None:
        """Predict on image files, given with the names of what is written about them."""
        with tqdm(total=len(files), desc='images', unit='image', disable=not files) as bar:
            for batch in batches(self._read(files, bar), self._batch_size):
                if signals.number:
                    return
                try:
                    predictions = self._predictor.predict(batch)
                except Skipped as error:
                    for item in batch:
                        self._skip(item.path, error)
                else:
                    for item, prediction in zip(batch, predictions):
                        self._write(item, prediction)
                bar.update(len(batch))

    def _write(self, item: Item, prediction: Prediction) -> None:
        try:
            self._output.add_image(item, prediction)
        except Skipped as error:
            self._skip(item.path, error)
        else:
            self._done += 1

    def video(self, path: Path, name: str) -> None:
        """Predict on a video's frames, one after the other, and make them a video again."""
        capture = cv2.VideoCapture()
        try:
            self._video(capture, path, name)
        except Skipped as error:
            self._skip(path, error)
        else:
            self._done += not self._part
        finally:
            capture.release()

    def _read(self, files: list[tuple[Path, str]], bar: tqdm) -> Iterator[Item]:
        for path, name in files:
            if signals.number:
                return
            try:
                item = self._predictor.load(path, next(self._image_ids), name)
            except Skipped as error:
                self._skip(path, error)
                bar.update()
            else:
                yield item

    def _video(self, capture: cv2.VideoCapture, path: Path, name: str) -> None:
        if not _is_utf8(path) or not capture.open(str(path)):
            raise Skipped('it cannot be read as a video' + ('' if _is_utf8(path) else ': its name is not UTF-8'))
        announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        done = 0
        picture_path = f'pictures/{name}.mp4'
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=announced or None, desc=printable(path.name), unit='frame'))
            for batch in batches(self._frames(capture, path, name), self._batch_size):
                if signals.number:
                    break
                for item, prediction in zip(batch, self._predictor.predict(batch)):
                    picture = make_even(self._output.add(item, prediction, picture_path))
                    if not done:
                        writer = open_writer(self._output.folder / picture_path, capture, picture)
                        stack.callback(writer.release)
                    writer.write(picture)
                    done += 1
                    bar.update()
        written = count_frames(self._output.folder / picture_path) if done else 0
        if signals.number and done < announced:
            self._part = f' and {done} frames of {printable(path)}'
            return
        if not done:
            raise Skipped('no frame of it can be read')
        if written < done:  # OpenCV says nothing when it cannot write
            raise Skipped(f'only {written} of its {done} frames could be written to {picture_path}')
        if done < 0.95 * announced - 2:  # containers without an index only estimate how many there are
            raise Skipped(f'it breaks off after {done} of {announced} frames, which are in {picture_path}')

    def _frames(self, capture: cv2.VideoCapture, path: Path, name: str) -> Iterator[Item]:
        for frame in count():
            there, image = capture.read()
            if not there:
                return
            yield self._predictor.take(image, path, next(self._image_ids), name, frame)

    def _skip(self, path: Path, error: Skipped) -> None:
        self.skipped += 1
        tqdm.write(f'skipped {printable(path)}: {printable(error)}', file=sys.stderr)


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Put images together that are of one size for the model; none is padded, which would change what is found.

    Args:
        items: The images; those of one size stay in order.
        size: Images in a batch, at most.
    """
    waiting: dict[tuple[int, ...], list[Item]] = {}
    for item in items:
        shape = tuple(item.packed['inputs'].shape)
        waiting.setdefault(shape, []).append(item)
        if len(waiting[shape]) == size:
            yield waiting.pop(shape)
        elif sum(map(len, waiting.values())) == 4 * size:  # of many sizes, not all are kept in memory
            yield waiting.pop(max(waiting, key=lambda shape: len(waiting[shape])))
    yield from waiting.values()


def _is_utf8(path: Path) -> bool:
    """Whether OpenCV can be told the name of a file, which it takes as text."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _silence_readers() -> None:
    """Keep OpenCV and FFmpeg from printing about broken files, which are reported in a line of their own."""
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    cv2.setLogLevel(0)
