"""Write predictions: COCO's JSON, label maps, and pictures."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import cv2
import numpy as np

from ..errors import UserError, reason
from ..files import write_whole
from ..visualization.painter import Instances, write_image
from .items import AnyPredictor, Item, Prediction, Skipped

#: Errors of the system that all later files would meet too.
ENDING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


class Output:
    """Writes label maps as they come and JSON files at the end, and draws pictures for the caller to write.

    Args:
        folder: Made if it does not exist, and tried: nothing is predicted that cannot be written.
        predictor: Whose predictions these are.
        threshold: Instances with lower scores are skipped.

    Raises:
        OSError: If files cannot be written there.
    """

    def __init__(self, folder: Path, predictor: AnyPredictor, threshold: float) -> None:
        self.folder = folder
        self._painter = predictor.painter
        self._classes = predictor.classes
        self._detects = predictor.detects
        self._threshold = threshold
        self._category_ids = predictor.category_ids
        self._images: list[dict[str, Any]] = []
        self._instances: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        for name in ('pictures',) if self._detects else ('pictures', 'label_maps'):
            (folder / name).mkdir(parents=True, exist_ok=True)
            TemporaryFile(dir=folder / name).close()

    def add_image(self, item: Item, prediction: Prediction) -> None:
        """Keep the prediction for an image for the JSON files, and write its picture.

        Raises:
            Skipped: If the picture, or the label map, cannot be written; the JSON files have the rest then, and say so.
            OSError: If there is no space left.
        """
        path = f'pictures/{item.name}.jpg'
        picture = self.add(item, prediction, path)
        with self._told(self._images[-1], 'picture'):
            write_image(self.folder / path, picture)

    @contextmanager
    def _told(self, entry: dict[str, Any], *keys: str) -> Iterator[None]:
        """Let an entry say what could not be written, in the place of where it is."""
        try:
            yield
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno in ENDING:
                raise
            for key in keys:
                entry.pop(key, None)
            entry['note'] = f'the {keys[0].replace("_", " ")} cannot be written ({reason(error)})'
            raise Skipped(f'its predictions are in the JSON files, but {entry["note"]}') from error

    def add(self, item: Item, prediction: Prediction, picture_path: str) -> np.ndarray:
        """Keep a prediction for the JSON files, and draw it.

        Args:
            item: The image.
            prediction: What the model finds in it.
            picture_path: Where the caller will write the picture, relative to the folder.

        Returns:
            The picture, ``(h, w, 3)`` of uint8, BGR.

        Raises:
            Skipped: If the label map cannot be written; the JSON files have the rest then, and say so.
            OSError: If there is no space left.
        """
        height, width = item.image.shape[:2]
        entry = {'id': item.image_id, **_origin(item), 'width': width, 'height': height, 'picture': picture_path}
        self._images.append(entry)
        if self._detects:
            return self._add_instances(item, prediction.from_score(self._threshold))
        return self._add_label_map(item, prediction, entry)

    def save(self) -> None:
        """Write the JSON files, each as a whole or not at all."""
        categories = [{'id': i, 'name': name} for i, name in zip(self._category_ids, self._classes)]
        content = {'info': {}, 'images': sorted(self._images, key=lambda e: e['id']), 'categories': categories}
        write_whole(self.folder / 'images.json', json.dumps(content, indent=1).encode())
        if self._detects:
            in_order = sorted(self._instances, key=lambda e: (e['image_id'], -e['score']))
            write_whole(self.folder / 'predictions.json', json.dumps(in_order).encode())

    def _add_instances(self, item: Item, found: Instances) -> np.ndarray:
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
        path = entry['label_map'] = f'label_maps/{item.name}{suffix}'
        present, pixels = np.unique(labels, return_counts=True)
        shares = (pixels / labels.size).tolist()
        entry['shares'] = {self._painter.name(int(i)): round(s, 6) for i, s in zip(present, shares)}
        with self._told(entry, 'label_map', 'picture'):
            write_image(self.folder / path, labels.astype(np.uint8 if labels.max() < 256 else np.uint16))
        return self._painter.draw_label_map(item.image, labels, fixed_size=item.frame is not None)


def _origin(item: Item) -> dict[str, Any]:
    return {'file_name': str(item.path)} | ({} if item.frame is None else {'frame': item.frame})


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed run lengths of a mask ``(H, W)``, as JSON has them."""
    from pycocotools import mask as rle  # not needed for segmentation

    encoded = rle.encode(np.asfortranarray(mask, np.uint8))
    return {'size': list(encoded['size']), 'counts': encoded['counts'].decode()}


def make_even(picture: np.ndarray) -> np.ndarray:
    """Repeat a picture's last row and column where needed: video encoders want even sides."""
    height, width = picture.shape[:2]
    return np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode='edge')


def open_writer(path: Path, capture: cv2.VideoCapture, picture: np.ndarray) -> cv2.VideoWriter:
    """Open a video for pictures of this size, at the frame rate of the one that is read.

    Raises:
        Skipped: If this one cannot be written.
        UserError: If OpenCV can write none.
        OSError: If there is no space left.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b'')
    except OSError as error:
        if error.errno in ENDING:
            raise
        raise Skipped(f'{path} cannot be written ({reason(error)})') from error
    pace = capture.get(cv2.CAP_PROP_FPS)
    pace = pace if 0 < pace <= 1000 else 25.0
    writer = _writer(path, pace, picture.shape[1], picture.shape[0])
    if not writer.isOpened():
        usual = _writer(path, 25.0, 64, 64)
        can_write = usual.isOpened()
        usual.release()
        path.unlink()
        if can_write:
            raise Skipped(f'no MP4 video of {picture.shape[1]}x{picture.shape[0]} pixels can be written')
        raise UserError(f'{path} cannot be written: this OpenCV has no encoder for MP4, the one of PyPI has')
    return writer


def _writer(path: Path, pace: float, width: int, height: int) -> cv2.VideoWriter:
    return cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), pace, (width, height))


def count_frames(path: Path) -> int:
    """How many frames a video says that it has; 0 if it cannot be read."""
    capture = cv2.VideoCapture(str(path))
    frames = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    capture.release()
    return frames
