"""What an exported file says of itself: how to prepare an image for it, and what its outputs mean."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import cv2
import numpy as np

from ..errors import UserError

#: The name that a file has it under: in ONNX's ``metadata_props``, and in OpenVINO's ``rt_info``.
KEY = 'cvt_dense'
#: Of the layout below; a file of a later one is not read.
VERSION = 1

INTERPOLATIONS = {
    'nearest': cv2.INTER_NEAREST,
    'bilinear': cv2.INTER_LINEAR,
    'bicubic': cv2.INTER_CUBIC,
    'area': cv2.INTER_AREA,
    'lanczos': cv2.INTER_LANCZOS4,
}


@dataclass(frozen=True)
class Resize:
    """mmcv's transform of that name: to the same pixels.

    Attributes:
        scale: Width and height to resize to; with ``keep_ratio`` the longer and the shorter side, in either order, to
            stay within. None for a factor.
        factor: Of the width and of the height; where ``scale`` is None.
        keep_ratio: Whether width and height are scaled alike.
        interpolation: Its name in mmcv.
    """

    scale: tuple[int, int] | None = None
    factor: tuple[float, float] | None = None
    keep_ratio: bool = False
    interpolation: str = 'bilinear'

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of an image of this height and width after it is resized."""
        scale = self.scale or (_scaled(width, self.factor[0]), _scaled(height, self.factor[1]))
        if not self.keep_ratio:
            return scale[1], scale[0]
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
        return _scaled(height, factor), _scaled(width, factor)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Resize an image ``(H, W, 3)``."""
        height, width = self.size_of(*image.shape[:2])
        return cv2.resize(image, (width, height), interpolation=INTERPOLATIONS[self.interpolation])


def _scaled(side: int, factor: float) -> int:
    return int(side * float(factor) + 0.5)


@dataclass(frozen=True)
class Metadata:
    """What a file takes and gives.

    Attributes:
        task: What the outputs are: ``detection`` has ``boxes``, ``scores``, ``labels`` and perhaps ``masks``;
            ``segmentation`` has ``logits``; ``features`` are maps.
        channel_order: Of the images that the file takes.
        min_size: Smallest side that the file is for, in pixels.
        resize: What is done to an image before the file gets it, beside the order of its channels; None for nothing.
        cannot_prepare: Why this does not say how to prepare an image; None if it does.
        classes: Names, in the order of the labels.
        category_ids: Numbers of the classes in the JSON files that predictions are written to.
        palette: RGB colours of the classes, None for those that are chosen to differ.
        score_threshold: Objects that score less are not shown unless another threshold is given; None for other tasks.
        align_corners: Whether logits are enlarged so that the middles of corner pixels stay.
        binary_threshold: Of a segmentor with one channel: the probability from which a pixel is of class 1.
    """

    task: Literal['detection', 'segmentation', 'features']
    channel_order: Literal['RGB', 'BGR']
    min_size: int = 1
    resize: Resize | None = None
    cannot_prepare: str | None = None
    classes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    palette: list[list[int]] | None = None
    score_threshold: float | None = None
    align_corners: bool = False
    binary_threshold: float | None = None

    def to_json(self) -> str:
        """What is written into a file."""
        return json.dumps({'version': VERSION, **asdict(self)})

    @classmethod
    def from_json(cls, text: str, where: object) -> Metadata:
        """Read it again.

        Args:
            text: What :meth:`to_json` gave.
            where: The file, for messages.

        Raises:
            UserError: If it is of a later version of this package, or not what this package writes.
        """
        try:
            content: dict[str, Any] = json.loads(text)
            version = content.pop('version')
            if version > VERSION:
                raise UserError(f'{where} was exported by a later cvt_dense: update this one, or export it again')
            content = {key: content[key] for key in (field.name for field in fields(cls)) if key in content}
            if content.get('resize') is not None:
                resize = content['resize']
                for key in ('scale', 'factor'):
                    resize[key] = tuple(resize[key]) if resize[key] else None
                content['resize'] = Resize(**resize)
            for key in ('classes', 'category_ids'):
                content[key] = tuple(content.get(key, ()))
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'what {where} says of itself as {KEY!r} cannot be read: export it again') from error
