"""Predict on images, folders, globs and videos with a trained detector or segmentor: pictures and JSON.

Exits with 0, with 1 if some inputs had to be skipped, and with 2 if it could not start or not go on.

Example:
    python tools/predict.py configs/maskrcnn_cvt21_fpn_coco.py CHECKPOINT photo.jpg photos/ --out predictions
    python tools/predict.py configs/upernet_cvt13_ade20k.py CHECKPOINT 'photos/**' film.mp4 --batch-size 4
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn
from tqdm import tqdm

from cvt_dense import launch
from cvt_dense.checkpoints.files import reason
from cvt_dense.checkpoints.sources import fetch
from cvt_dense.cli import UserError
from cvt_dense.drawing import Instances, Painter
from cvt_dense.unpickling import read_checkpoint

IMAGES = ('.bmp', '.jpeg', '.jpg', '.pgm', '.png', '.ppm', '.tif', '.tiff', '.webp')
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')
SCORE_THRESHOLD = 0.3
#: Numbers up to 90 that COCO's 80 classes leave out.
UNUSED_BY_COCO = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
#: How files of a format begin, and what they have near their end.
ENDS = {b'\xff\xd8\xff': b'\xff\xd9', b'\x89PNG': b'IEND'}


class Skipped(Exception):
    """An input that nothing, or not all, can be predicted for; the message says why."""


@dataclass(frozen=True)
class Item:
    """An image, or a frame of a video, on its way through the model.

    Attributes:
        image_id: Its number in the JSON files.
        path: The file that it is from.
        name: What is written about the file has this name, without a suffix.
        frame: Number of the frame from 0 on, None for an image.
        image: ``(H, W, 3)`` of uint8, BGR, upright.
        packed: What the config's test pipeline made of it.
    """

    image_id: int
    path: Path
    name: str
    frame: int | None
    image: np.ndarray
    packed: dict[str, Any]


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


def find_inputs(patterns: Iterable[str]) -> list[Path]:
    """The files that files, folders and globs name, each once.

    Raises:
        UserError: If one names nothing that could be an image or a video.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _expand(pattern):
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    within = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(path), recursive=True))
    found = sorted(p for p in within if p.suffix.lower() in IMAGES + VIDEOS and p.name[0] != '.' and p.is_file())
    if found:
        return found
    if path.is_dir():
        raise UserError(f"folder {pattern} has no images or videos in it; for its subfolders give '{pattern}/**'")
    if glob.has_magic(pattern):
        raise UserError(f'no image or video matches {pattern}')
    raise UserError(f'input {pattern} does not exist')


def name_outputs(paths: list[Path]) -> list[str]:
    """Name what is written about each file: by its path below the folder that all have in common, without suffix.

    Names that are the same then, or would be to a file system that knows no case, are numbered.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    names: list[str] = []
    taken: set[str] = set()
    for path in absolute:
        name = plain = path.relative_to(common).with_suffix('').as_posix()
        numbers = count(2)
        while name.lower() in taken:
            name = f'{plain}-{next(numbers)}'
        taken.add(name.lower())
        names.append(name)
    return names


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


class Predictor:
    """A trained model, and the pipeline that it was tested with.

    Args:
        cfg: Config of mmdet or mmseg.
        checkpoint: The file that training wrote, or its address.
        device: To compute on.

    Raises:
        UserError: If the config cannot be built, or the checkpoint does not cover its model.
        CheckpointError: If the checkpoint cannot be read.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: torch.device) -> None:
        self.scope: str = cfg.default_scope
        if 'backbone' in cfg.model:
            cfg.model.backbone.init_cfg = None  # the checkpoint holds every weight
        launch.check_checkpoint(checkpoint)
        path = str(fetch(checkpoint))
        dataset = _test_dataset(cfg)
        with self._in_scope(), _one_line_for_mistakes():
            model = revert_sync_batchnorm(MODELS.build(cfg.model))
            loading, *steps = _inference_steps(dataset)
            self._load, self._prepare = Compose([loading]), Compose(steps)
        content = _load_weights(model, path)
        self.model = model.to(device).eval()
        saved = (content.get('meta') or {}).get('dataset_meta') or {}
        meta = {key.lower(): value for key, value in saved.items()}
        if 'classes' not in meta:
            with self._in_scope(), _one_line_for_mistakes():
                meta = DATASETS.build(dict(dataset, lazy_init=True)).metainfo
        self.classes: tuple[str, ...] = tuple(meta.get('classes') or ())
        self.painter = Painter(self.classes, meta.get('palette'))

    def load(self, path: Path, image_id: int, name: str) -> Item:
        """Read an image, as for training: upright, three channels of 8 bits.

        Raises:
            Skipped: If it cannot be read.
        """
        try:
            _check_end(path)
            loaded = self._load(dict(img_path=str(path), img_id=image_id))
        except Exception as error:  # what a damaged file makes a reader stumble over can be anything
            raise Skipped(f'it cannot be read as an image ({reason(error)})') from error
        return self._item(loaded, path, image_id, name, None)

    def take(self, image: np.ndarray, path: Path, image_id: int, name: str, frame: int) -> Item:
        """Take a frame of a video, ``(H, W, 3)`` of uint8, BGR.

        Raises:
            Skipped: If the config's pipeline fails on it.
        """
        size = image.shape[:2]
        loaded = dict(img=image, img_path=str(path), img_id=image_id, img_shape=size, ori_shape=size)
        return self._item(loaded, path, image_id, name, frame)

    def predict(self, items: list[Item]) -> list[BaseDataElement]:
        """What the model finds in images that are of one size for it: one sample each.

        Raises:
            Skipped: If they are too large for the memory, or too small for the model.
        """
        try:
            with torch.no_grad(), self._in_scope():
                return self.model.test_step(pseudo_collate([item.packed for item in items]))
        except torch.OutOfMemoryError as error:
            raise Skipped("no memory for it: lower --batch-size, or the size in the config's test pipeline") from error
        except (ValueError, RuntimeError) as error:  # of images that are too small
            raise Skipped(f'the model refuses it ({reason(error)})') from error

    def _item(self, loaded: dict[str, Any], path: Path, image_id: int, name: str, frame: int | None) -> Item:
        image = loaded['img']
        if image.dtype != np.uint8 or image.shape[2:] != (3,):
            raise UserError(
                "for this tool the config's LoadImageFromFile must give 8-bit colour: leave out its options"
            )
        try:
            packed = self._prepare(loaded)
        except Exception as error:  # a pipeline is made of anyone's steps
            size = f'{image.shape[1]}x{image.shape[0]}'
            raise Skipped(f"{size} pixels fail in the config's test pipeline ({reason(error)})") from error
        return Item(image_id, path, name, frame, image, packed)

    def _in_scope(self) -> Any:
        return DefaultScope.overwrite_default_scope(self.scope)


@contextmanager
def _one_line_for_mistakes() -> Iterator[None]:
    """Turn what registries and constructors raise for wrong settings into a :class:`UserError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f'the config cannot be built: {type(error).__name__}: {reason(error)}') from error


def _test_dataset(cfg: Config) -> ConfigDict:
    """The dataset of the config that has the test pipeline, out of those that wrap it.

    Raises:
        UserError: If there is none.
    """
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset:
        inner = dataset.get('dataset') or dataset.get('datasets')
        if not inner:
            raise UserError('the config has no test_dataloader.dataset.pipeline, which says how to prepare an image')
        dataset = inner if isinstance(inner, dict) else inner[0]
    return dataset


def _inference_steps(dataset: ConfigDict) -> list[ConfigDict]:
    """The test pipeline without what reads the truth; its first step reads the image.

    Raises:
        UserError: If it is no pipeline that begins with reading an image file.
    """
    steps = [step for step in dataset.pipeline if 'Annotations' not in step['type']]
    if not steps or not steps[0]['type'].endswith('LoadImageFromFile'):
        raise UserError("the config's test pipeline must begin with LoadImageFromFile")
    return steps


def _load_weights(model: nn.Module, path: str) -> dict[str, Any]:
    """Load a checkpoint that covers the model; its content."""
    launch.check_weights(model, path)
    content = dict(read_checkpoint(path))
    # Not strict about what is left over alone: nothing is missing, that has just been seen.
    unused = model.load_state_dict(content.get('state_dict', content), strict=False).unexpected_keys
    if unused:
        print(f'note: {len(unused)} tensors of {path} have no place in this config: {unused[0]}, …', file=sys.stderr)
    return content


def _check_end(path: Path) -> None:
    """Raise ValueError for a file that breaks off, which OpenCV would fill up with grey without a word."""
    content = path.read_bytes()
    if not content:
        raise ValueError('it is empty')
    for start, end in ENDS.items():
        # An embedded preview, which has an end of its own, lies in the first half.
        if content.startswith(start) and end not in content[len(content) // 2 :]:
            raise ValueError('it breaks off before its end')


class Output:
    """What is written: label maps as they come, pictures by the caller, JSON at the end.

    Args:
        folder: Made if it is not there.
        predictor: Whose predictions these are.
        threshold: Instances that score less are left out.
    """

    def __init__(self, folder: Path, predictor: Predictor, threshold: float) -> None:
        self.folder = folder
        self._painter = predictor.painter
        self._classes = predictor.classes
        self._detects = predictor.scope == 'mmdet'
        self._threshold = threshold
        self._category_ids = category_ids(predictor.classes, self._detects)
        self._images: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, item: Item, sample: BaseDataElement, picture_path: str) -> np.ndarray:
        """Note a prediction for the JSON files, and draw it.

        Args:
            item: The image.
            sample: What the model says of it.
            picture_path: Where the caller is going to put the picture, below the folder.

        Returns:
            The picture, ``(h, w, 3)`` of uint8, BGR.
        """
        height, width = item.image.shape[:2]
        entry = {'id': item.image_id, **_origin(item), 'width': width, 'height': height, 'picture': picture_path}
        self._images.append(entry)
        if self._detects:
            return self._add_instances(item, sample.pred_instances)
        return self._add_label_map(item, sample.pred_sem_seg.data[0].cpu().numpy(), entry)

    def save(self) -> None:
        """Write the JSON files."""
        categories = [{'id': i, 'name': name} for i, name in zip(self._category_ids, self._classes)]
        content = {'info': {}, 'images': sorted(self._images, key=lambda e: e['id']), 'categories': categories}
        (self.folder / 'images.json').write_text(json.dumps(content, indent=1))
        if self._detects:
            in_order = sorted(self._instances, key=lambda e: (e['image_id'], -e['score']))
            (self.folder / 'predictions.json').write_text(json.dumps(in_order))

    def _add_instances(self, item: Item, instances: BaseDataElement) -> np.ndarray:
        kept = instances[instances.scores >= self._threshold].cpu().numpy()
        found = Instances(kept.bboxes, kept.labels, kept.scores, kept.get('masks'))
        for i, label in enumerate(found.labels.tolist()):
            x1, y1, x2, y2 = (round(value, 2) for value in found.boxes[i].tolist())
            self._instances.append(
                {
                    'image_id': item.image_id,
                    **_origin(item),
                    'category_id': self._category_ids[label] if label < len(self._category_ids) else label + 1,
                    'category_name': self._painter.name(label),
                    'bbox': [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                    'score': round(float(found.scores[i]), 5),
                    **({} if found.masks is None else {'segmentation': _run_lengths(found.masks[i])}),
                }
            )
        return self._painter.draw_instances(item.image, found)

    def _add_label_map(self, item: Item, labels: np.ndarray, entry: dict[str, Any]) -> np.ndarray:
        # Frames lie in a folder named like their video, with its suffix: no folder of images is named like that.
        suffix = '.png' if item.frame is None else f'{item.path.suffix}/{item.frame:06}.png'
        entry['label_map'] = f'label_maps/{item.name}{suffix}'
        write_image(self.folder / entry['label_map'], labels.astype(np.uint8 if labels.max() < 256 else np.uint16))
        present, pixels = np.unique(labels, return_counts=True)
        shares = (pixels / labels.size).tolist()
        entry['shares'] = {self._painter.name(int(i)): round(s, 6) for i, s in zip(present, shares)}
        return self._painter.draw_label_map(item.image, labels, fixed_size=item.frame is not None)


def category_ids(classes: tuple[str, ...], detects: bool) -> list[int]:
    """Numbers of the classes: labels for segmentation; for detection COCO's own for its classes, else from 1 on."""
    if not detects:
        return list(range(len(classes)))
    from mmdet.datasets import CocoDataset  # which segmentation can do without

    if classes == CocoDataset.METAINFO['classes']:
        return [i for i in range(1, 91) if i not in UNUSED_BY_COCO]
    return list(range(1, len(classes) + 1))


def _origin(item: Item) -> dict[str, Any]:
    return {'file_name': str(item.path)} | ({} if item.frame is None else {'frame': item.frame})


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask ``(H, W)``, as JSON has them."""
    from pycocotools import mask as rle  # which segmentation can do without

    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {'size': list(encoded['size']), 'counts': encoded['counts'].decode()}


def write_image(path: Path, image: np.ndarray) -> None:
    """Write a PNG or a JPEG, by the suffix, and the folders that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Full colour resolution: half of it blurs small letters.
    options = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    path.write_bytes(cv2.imencode(path.suffix, image, options if path.suffix == '.jpg' else [])[1].tobytes())


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
                        writer = _open_writer(self._output.folder / picture_path, capture, picture)
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


def make_even(picture: np.ndarray) -> np.ndarray:
    """A picture with its last row and column repeated, if need be, for video encoders want even sides."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')


def _open_writer(path: Path, capture: cv2.VideoCapture, picture: np.ndarray) -> cv2.VideoWriter:
    """A video of pictures of that size at the pace of the one that is read.

    Raises:
        UserError: If OpenCV cannot write one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pace = capture.get(cv2.CAP_PROP_FPS)
    pace = pace if 0 < pace <= 1000 else 25.0
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), pace, picture.shape[1::-1])
    if not writer.isOpened():
        raise UserError(f'{path} cannot be written: this OpenCV has no encoder for MP4, the one of PyPI has')
    return writer


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
