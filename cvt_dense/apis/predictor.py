"""A trained detector or segmentor on images: read and prepared as in its test pipeline."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, DefaultScope
from mmengine.structures import BaseDataElement
from PIL import Image
from tqdm import tqdm

from ..datasets.reading import is_cut_jpeg
from ..engine.failures import cannot_be_built
from ..engine.model import build_model
from ..errors import UserError, reason
from ..registry import type_name
from ..visualization.painter import Painter
from .inputs import printable


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
        dataset = _test_dataset(cfg)
        self.model = build_model(cfg, checkpoint).to(device).eval()
        with self._in_scope(), _one_line_for_mistakes():
            loading, *steps = _inference_steps(dataset)
            self._load, self._prepare = Compose([loading]), Compose(steps)
        meta = {key.lower(): value for key, value in self.model.dataset_meta.items()}
        if 'classes' not in meta:
            with self._in_scope(), _one_line_for_mistakes():
                meta = DATASETS.build(dict(dataset, lazy_init=True)).metainfo
        self.classes: tuple[str, ...] = tuple(meta.get('classes') or ())
        self.painter = Painter.of(meta)

    def load(self, path: Path, image_id: int, name: str) -> Item:
        """Read an image, as for training: upright, three channels of 8 bits.

        Raises:
            Skipped: If it cannot be read.
        """
        try:
            _check_pictures(path)
            _check_end(path)
            loaded = self._load(dict(img_path=str(path), img_id=image_id))
        except Exception as error:  # damaged files make readers raise all kinds
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
    except Exception as error:  # toolkits assert, too
        raise cannot_be_built('the config', error) from error


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
    steps = [step for step in dataset.pipeline if 'Annotations' not in type_name(step)]
    if not steps or not type_name(steps[0]).endswith('LoadImageFromFile'):
        raise UserError("the config's test pipeline must begin with LoadImageFromFile")
    return steps


def _check_pictures(path: Path) -> None:
    """Look at what an image file says of itself: that it holds several pictures, of which one is read, is noted.

    Raises:
        DecompressionBombError: If it has so many pixels that Pillow takes it for an attack: it might fill the memory.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            with Image.open(path) as image:
                pictures = getattr(image, 'n_frames', 1) if image.format != 'MPO' else 1  # previews, from cameras
        except Image.DecompressionBombError:
            raise
        except Exception:  # what Pillow does not know, OpenCV may; and n_frames reads on
            return
    if pictures > 1:
        tqdm.write(
            f'note: {printable(path)} holds {pictures} pictures, and the first one is predicted on', file=sys.stderr
        )


def _check_end(path: Path) -> None:
    """Raise ValueError for a file that breaks off, which OpenCV would silently fill up with grey."""
    content = path.read_bytes()
    if not content:
        raise ValueError('it is empty')
    is_cut_png = content.startswith(b'\x89PNG') and b'IEND' not in content[len(content) // 2 :]
    if is_cut_png or is_cut_jpeg(content):
        raise ValueError('it breaks off before its end')
