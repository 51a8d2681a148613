"""Write predictions: COCO's JSON, label maps, and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.structures import BaseDataElement

from ..errors import UserError
from ..visualization.painter import Instances, write_image
from .predictor import Item, Predictor

#: Numbers up to 90 that none of COCO's 80 classes has.
UNUSED_BY_COCO = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}


class Output:
    """Writes label maps as they come and JSON files at the end, and draws pictures for the caller to write.

    Args:
        folder: Made if it does not exist.
        predictor: Whose predictions these are.
        threshold: Instances with lower scores are skipped.
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
        """Keep a prediction for the JSON files, and draw it.

        Args:
            item: The image.
            sample: The model's prediction.
            picture_path: Where the caller will write the picture, relative to the folder.

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
        found = Instances.of(instances[instances.scores >= self._threshold])
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
    from mmdet.datasets import CocoDataset  # not needed for segmentation

    if classes == CocoDataset.METAINFO['classes']:
        return [i for i in range(1, 91) if i not in UNUSED_BY_COCO]
    return list(range(1, len(classes) + 1))


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
        UserError: If OpenCV cannot write one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    pace = capture.get(cv2.CAP_PROP_FPS)
    pace = pace if 0 < pace <= 1000 else 25.0
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), pace, picture.shape[1::-1])
    if not writer.isOpened():
        raise UserError(f'{path} cannot be written: this OpenCV has no encoder for MP4, the one of PyPI has')
    return writer
