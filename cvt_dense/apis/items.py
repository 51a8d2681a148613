"""What goes into a predictor and comes out of it, whatever it runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..datasets.decoding import is_cut_jpeg
from ..errors import reason
from ..visualization.painter import Instances, Painter
from .inputs import printable

#: Of an image of H by W pixels: the objects in it, or its label map, ``(H, W)`` of class indices.
Prediction = Instances | np.ndarray


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
        packed: What the model takes; ``inputs`` is the image as it was prepared, ``(3, h, w)``.
    """

    image_id: int
    path: Path
    name: str
    frame: int | None
    image: np.ndarray
    packed: dict[str, Any]


class AnyPredictor(Protocol):
    """What :func:`cvt_dense.apis.predict_files` needs of a predictor.

    Attributes:
        detects: Whether it finds objects; it labels pixels otherwise.
        classes: Their names, in the order of the labels.
        category_ids: Their numbers in the JSON files.
        painter: Draws its predictions.
    """

    detects: bool
    classes: tuple[str, ...]
    category_ids: Sequence[int]
    painter: Painter

    def load(self, path: Path, image_id: int, name: str) -> Item:
        """Read an image, upright, in three channels of 8 bits; raises :class:`Skipped` if it cannot be read."""

    def take(self, image: np.ndarray, path: Path, image_id: int, name: str, frame: int) -> Item:
        """Take a frame of a video, ``(H, W, 3)`` of uint8, BGR; raises :class:`Skipped` if it cannot be prepared."""

    def predict(self, items: list[Item]) -> list[Prediction]:
        """Predict on images that are of one size for the model; raises :class:`Skipped` if it cannot."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Look at an image file before it is read, and raise :class:`Skipped` for all that goes wrong in reading it."""
    try:
        _check_pictures(path)
        _check_end(path)
        yield
    except Exception as error:  # damaged files make readers raise all kinds
        raise Skipped(f'it cannot be read as an image ({reason(error)})') from error


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
