"""Predict on images, folders, globs and videos with a trained detector or segmentor: pictures and JSON.

Exits with 0, with 1 if some inputs had to be skipped, and with 2 if it could not start or not go on.

Example:
    python tools/predict.py configs/maskrcnn_cvt21_fpn_coco.py CHECKPOINT photo.jpg photos/ --out predictions
    python tools/predict.py configs/upernet_cvt13_ade20k.py CHECKPOINT 'photos/**' film.mp4 --batch-size 4
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path

from cvt_dense import cli

cli.need('mmengine')  # before the imports that would end in a stack trace

import cv2
import torch
from mmengine.config import Config, DictAction
from tqdm import tqdm

from cvt_dense.apis import Item, Output, Predictor, Skipped
from cvt_dense.apis.inputs import VIDEOS, find_inputs, name_outputs
from cvt_dense.apis.output import make_even, open_writer, write_image
from cvt_dense.engine import launch
from cvt_dense.errors import UserError, reason

SCORE_THRESHOLD = 0.3


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file that training wrote')
    parser.add_argument('inputs', nargs='+', metavar='INPUT', help='image, video, folder, or glob in quotes')
    parser.add_argument('--out', metavar='DIR', help='folder to write to (default: work_dirs/CONFIG NAME/predictions)')
    parser.add_argument(
        '--score-thr', type=float, metavar='SCORE', help=f'leave out what scores less (default: {SCORE_THRESHOLD})'
    )
    parser.add_argument('--device', help='cpu, cuda, cuda:1, … (default: a GPU if there is one)')
    parser.add_argument('--batch-size', type=int, default=1, metavar='N', help='images of one size at a time')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: KEY=VALUE ..., e.g. model.test_cfg.rcnn.max_per_img=20',
    )
    parser.set_defaults(work_dir=None, launcher='none', local_rank=0)
    return parser.parse_args()


def check_arguments(args: argparse.Namespace, cfg: Config) -> None:
    """See whether the arguments go together.

    Raises:
        UserError: If one has a value that it cannot have, or does not go with the config.
    """
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'config {args.config} is one of {cfg.default_scope}; this tool is for mmdet and mmseg')
    if args.batch_size < 1:
        raise UserError(f'--batch-size must be at least 1, got {args.batch_size}')
    if args.score_thr is not None and cfg.default_scope == 'mmseg':
        raise UserError('--score-thr is for detection: a segmentor gives each pixel its best class')
    if args.score_thr is not None and not 0 <= args.score_thr <= 1:
        raise UserError(f'--score-thr must lie between 0 and 1, got {args.score_thr}')


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

    def __init__(self, predictor: Predictor, output: Output, batch_size: int) -> None:
        self.skipped = 0
        self._predictor = predictor
        self._output = output
        self._batch_size = batch_size
        self._image_ids = count(1)

    def images(self, files: list[tuple[Path, str]]) -> None:
        """Predict on image files, given with the names of what is written about them."""
        with tqdm(total=len(files), desc='images', unit='image', disable=not files) as bar:
            for batch in batches(self._read(files, bar), self._batch_size):
                try:
                    samples = self._predictor.predict(batch)
                except Skipped as error:
                    for item in batch:
                        self._skip(item.path, error)
                else:
                    for item, sample in zip(batch, samples):
                        path = f'pictures/{item.name}.jpg'
                        write_image(self._output.folder / path, self._output.add(item, sample, path))
                bar.update(len(batch))

    def video(self, path: Path, name: str) -> None:
        """Predict on a video's frames, one after the other, and make them a video again."""
        capture = cv2.VideoCapture(str(path))
        try:
            self._video(capture, path, name)
        except Skipped as error:
            self._skip(path, error)
        finally:
            capture.release()

    def _read(self, files: list[tuple[Path, str]], bar: tqdm) -> Iterator[Item]:
        for path, name in files:
            try:
                item = self._predictor.load(path, next(self._image_ids), name)
            except Skipped as error:
                self._skip(path, error)
                bar.update()
            else:
                yield item

    def _video(self, capture: cv2.VideoCapture, path: Path, name: str) -> None:
        if not capture.isOpened():
            raise Skipped('it cannot be read as a video')
        announced = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        done = 0
        picture_path = f'pictures/{name}.mp4'
        with ExitStack() as stack:
            bar = stack.enter_context(tqdm(total=announced or None, desc=path.name, unit='frame'))
            for batch in batches(self._frames(capture, path, name), self._batch_size):
                for item, sample in zip(batch, self._predictor.predict(batch)):
                    picture = make_even(self._output.add(item, sample, picture_path))
                    if not done:
                        writer = open_writer(self._output.folder / picture_path, capture, picture)
                        stack.callback(writer.release)
                    writer.write(picture)
                    done += 1
                    bar.update()
        if not done:
            raise Skipped('no frame of it can be read')
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
        tqdm.write(f'skipped {path}: {error}', file=sys.stderr)


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


def silence_readers() -> None:
    """Keep OpenCV and FFmpeg from printing about broken files, which are reported in a line of their own."""
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    cv2.setLogLevel(0)


def main() -> None:
    args = parse_args()
    cfg = launch.load_config(args)
    check_arguments(args, cfg)
    paths = find_inputs(args.inputs)
    launch.hide_gpu_without_operators(cfg)
    predictor = Predictor(cfg, args.checkpoint, choose_device(args.device))
    threshold = SCORE_THRESHOLD if args.score_thr is None else args.score_thr
    output = Output(Path(args.out or Path(cfg.work_dir, 'predictions')), predictor, threshold)
    run = Run(predictor, output, args.batch_size)
    named = list(zip(paths, name_outputs(paths)))
    silence_readers()
    try:
        run.images([(path, name) for path, name in named if path.suffix.lower() not in VIDEOS])
        for path, name in named:
            if path.suffix.lower() in VIDEOS:
                run.video(path, name)
    finally:
        output.save()
    skipped = f', {run.skipped} skipped' if run.skipped else ''
    print(f'inputs: {len(paths)}{skipped}; pictures and JSON files are in {output.folder}')
    if run.skipped:
        sys.exit(1)


if __name__ == '__main__':
    launch.run(main)
