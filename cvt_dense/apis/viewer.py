"""Look at a model picture by picture: what it finds, and what a point of the picture attends to inside of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..analysis.inspection import StageView, inspect_stages
from ..backbones.multi_scale import MultiScale
from ..visualization.overlays import fitted
from ..visualization.painter import Instances
from .items import Skipped
from .predictor import Predictor

#: Pixels of the longer side of the largest picture that is predicted on as it is.
MAX_SIDE = 1600

Point = tuple[int, int]
Row = list[str | float]


@dataclass(frozen=True)
class View:
    """A picture, and what a model found in it.

    Attributes:
        name: Of its file.
        size: Width and height of the file's picture, turned upright.
        image: ``(H, W, 3)`` of uint8, BGR: that picture, reduced if it is large.
        found: The objects, of a detector, in pixels of ``image``; their masks are in ``masks``.
        masks: One for each object, as COCO's run lengths, which take a hundredth of the memory; None without masks.
        labels: ``(H, W)`` of class indices, of a segmentor.
        prepared: ``(1, 3, h, w)``: what the backbone gets.
    """

    name: str
    size: tuple[int, int]
    image: np.ndarray
    found: Instances | None
    masks: Sequence[dict[str, Any]] | None
    labels: np.ndarray | None
    prepared: Tensor

    @property
    def scale(self) -> float:
        """Pixels of the file's picture to one of ``image``."""
        return self.size[0] / self.image.shape[1]

    @property
    def description(self) -> str:
        """The file, and the size of its picture."""
        height, width = self.image.shape[:2]
        reduced = '' if (width, height) == self.size else f', reduced to {width}×{height} before the model saw it'
        return f'{self.name}: {self.size[0]}×{self.size[1]} pixels{reduced}'

    def point_at(self, place: tuple[float, float], shown: tuple[int, int]) -> Point:
        """The pixel of the file's picture that a place is in where the picture is shown in another size.

        Args:
            place: Column and row.
            shown: Width and height, in which the picture is shown.
        """
        return self._moved(place, shown, self.size)

    def place_of(self, point: Point, shown: tuple[int, int]) -> Point:
        """Where a pixel of the file's picture is if the picture is shown with a width and a height."""
        return self._moved(point, self.size, shown)

    @staticmethod
    def _moved(place: tuple[float, float], before: tuple[int, int], now: tuple[int, int]) -> Point:
        column, row = (
            min(max(int((x + 0.5) * new / old), 0), new - 1) for x, old, new in zip(place, before, now, strict=True)
        )
        return column, row


@dataclass(frozen=True)
class Inside:
    """What the backbone makes of a picture, seen from one point.

    Attributes:
        point: The pixel of the file's picture.
        stages: On the CPU.
    """

    point: Point
    stages: Sequence[StageView]


class Viewer:
    """Shows pictures to a model, one at a time whichever thread asks.

    Args:
        predictor: The model.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._one = threading.Lock()

    @property
    def detects(self) -> bool:
        """Whether it finds objects; otherwise it gives each pixel a class."""
        return self._predictor.detects

    @property
    def cannot_look_inside(self) -> str:
        """Why there is nothing to see inside; empty if there is."""
        backbone = getattr(self._predictor.model, 'backbone', None)
        if isinstance(backbone, MultiScale):
            return ''
        return f'its backbone is {type(backbone).__name__}, and only those of cvt_dense can be looked into'

    def open(self, path: Path, name: str | None = None) -> View:
        """Read a picture as the model's test pipeline does, and predict on it.

        Args:
            path: The file.
            name: What to call it, by default the file's name.

        Raises:
            Skipped: If it cannot be read, or the model cannot take it; the message says why.
        """
        name = path.name if name is None else name
        with self._one:
            item = self._predictor.load(path, 1, name)
            height, width = item.image.shape[:2]
            if max(height, width) > MAX_SIDE:
                item = self._predictor.take(fitted(item.image, MAX_SIDE), path, 1, name, 0)
            prepared = self._predictor.prepared(item).cpu()
            (prediction,) = self._predictor.predict([item])
        found, masks, labels = None, None, None
        if isinstance(prediction, Instances):
            found, masks = _apart(prediction)
        else:
            labels = prediction
        return View(name, (width, height), item.image, found, masks, labels, prepared)

    def draw(self, view: View, threshold: float) -> np.ndarray:
        """Draw what was found: objects from a score on, or the label map.

        Returns:
            ``(h, w, 3)`` of uint8, BGR, see :class:`~cvt_dense.visualization.painter.Painter`.
        """
        painter = self._predictor.painter
        if view.found is None:
            return painter.draw_label_map(view.image, view.labels)
        return painter.draw_instances(view.image, _shown(view, threshold))

    @property
    def columns(self) -> list[str]:
        """What :meth:`rows` has in each column."""
        return ['class', 'score', 'x', 'y', 'w', 'h'] if self.detects else ['class', '% of picture']

    def rows(self, view: View, threshold: float) -> list[Row]:
        """A row for each object from a score on, the surest first, or for each class, the largest first.

        Boxes are in pixels of the file's picture.
        """
        name = self._predictor.painter.name
        if view.found is None:
            labels, pixels = np.unique(view.labels, return_counts=True)
            shares = 100 * pixels / view.labels.size
            return [[name(int(labels[i])), round(float(shares[i]), 2)] for i in np.argsort(-shares, kind='stable')]
        rows: list[Row] = []
        for i in np.argsort(-view.found.scores, kind='stable'):
            score = float(view.found.scores[i])
            x1, y1, x2, y2 = (view.scale * view.found.boxes[i]).tolist()
            if score >= threshold:
                box = (round(value, 1) for value in (x1, y1, x2 - x1, y2 - y1))
                rows.append([name(int(view.found.labels[i])), round(score, 3), *box])
        return rows

    def look_inside(self, view: View, point: Point) -> Inside:
        """See what the backbone makes of a picture, and what a point of it attends to in each block.

        Args:
            view: The picture.
            point: Column and row of a pixel of the file's picture.

        Raises:
            Skipped: If the backbone is of a kind that cannot be looked into.
        """
        if self.cannot_look_inside:
            raise Skipped(self.cannot_look_inside)
        backbone = self._predictor.model.backbone
        height, width = view.prepared.shape[2:]
        with self._one:
            image = view.prepared.to(next(backbone.parameters()).device)
            stages = inspect_stages(backbone.stages, image, view.place_of(point, (width, height)))
        return Inside(point, [_on_cpu(stage) for stage in stages])


def _on_cpu(stage: StageView) -> StageView:
    rows = (replace(row, weights=row.weights.cpu(), cls_weights=row.cls_weights.cpu()) for row in stage.attention)
    return replace(stage, features=stage.features.cpu(), attention=tuple(rows))


def _apart(found: Instances) -> tuple[Instances, Sequence[dict[str, Any]] | None]:
    """The objects without their masks, and those apart."""
    if found.masks is None:
        return found, None
    from pycocotools import mask as rle  # not needed for segmentation

    return replace(found, masks=None), rle.encode(np.asfortranarray(found.masks.transpose(1, 2, 0), np.uint8))


def _shown(view: View, threshold: float) -> Instances:
    """The objects from a score on, with their masks."""
    found = view.found
    (chosen,) = np.nonzero(found.scores >= threshold)
    masks = None
    if view.masks is not None:
        from pycocotools import mask as rle  # not needed for segmentation

        masks = np.zeros((0, *view.image.shape[:2]), bool)
        if len(chosen):
            masks = rle.decode([view.masks[i] for i in chosen]).transpose(2, 0, 1).astype(bool)
    return Instances(found.boxes[chosen], found.labels[chosen], found.scores[chosen], masks)
