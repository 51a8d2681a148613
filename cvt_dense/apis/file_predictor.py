"""An exported detector or segmentor on images; the file says how they are prepared."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from ..errors import UserError, reason
from ..visualization.painter import Instances, Painter
from .items import Item, Prediction, Skipped, readable
from .metadata import Metadata
from .runtimes import Precision, open_file


class FilePredictor:
    """A model in an ``.onnx`` or ``.xml`` file that ``tools/export.py`` wrote; it needs no mmengine, mmcv, or mmdet.

    Args:
        path: The file.
        device: See :func:`cvt_dense.apis.runtimes.open_file`, as for the others.
        precision: That is computed in.
        threads: On a CPU; 0 leaves it to the runtime.

    Raises:
        UserError: If the file cannot be opened, or does not say how to prepare an image for it.
    """

    def __init__(
        self, path: str | Path, device: str | None = None, precision: Precision = 'float32', threads: int = 0
    ) -> None:
        self.runtime = open_file(Path(path), device, precision, threads)
        if self.runtime.text is None:
            raise UserError(f'{path} does not say how to prepare images for it: export it with tools/export.py')
        self.metadata = meta = Metadata.from_json(self.runtime.text, path)
        if meta.task == 'features':
            raise UserError(f'{path} gives feature maps, from which nothing can be predicted: export the whole model')
        if meta.cannot_prepare is not None:
            raise UserError(f'{path} does not say how to prepare images for it: {meta.cannot_prepare}')
        self.detects = meta.task == 'detection'
        self.classes, self.category_ids = meta.classes, meta.category_ids
        self.painter = Painter.of({'classes': meta.classes, 'palette': meta.palette})

    def __call__(self, image: str | Path | np.ndarray) -> Prediction:
        """Predict on one image.

        Args:
            image: A file, or ``(H, W, 3)`` of uint8, BGR.

        Returns:
            The objects in it, of whatever score the model gives, or its label map, ``(H, W)``.

        Raises:
            Skipped: If the image cannot be read, or nothing can be predicted for it.
        """
        if isinstance(image, np.ndarray):
            item = self.take(image, Path('image'), 1, 'image', 0)
        else:
            item = self.load(Path(image), 1, Path(image).stem)
        (prediction,) = self.predict([item])
        return prediction

    def load(self, path: Path, image_id: int, name: str) -> Item:
        """Read an image: upright, three channels of 8 bits.

        Raises:
            Skipped: If it cannot be read.
        """
        with readable(path):
            image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
            if image is None:
                raise ValueError(f'failed to load image: {path}')
        return self._item(image, path, image_id, name, None)

    def take(self, image: np.ndarray, path: Path, image_id: int, name: str, frame: int) -> Item:
        """Take a frame of a video, ``(H, W, 3)`` of uint8, BGR.

        Raises:
            Skipped: If it is too small for the file.
        """
        return self._item(image, path, image_id, name, frame)

    def predict(self, items: list[Item]) -> list[Prediction]:
        """What the model finds in images that are of one size for it.

        Raises:
            Skipped: If the runtime fails on them.
        """
        images = np.stack([item.packed['inputs'] for item in items]).astype(np.float32)
        if self.detects:  # a detector's file takes one image
            return [self._instances(item, self._run(image[None])) for item, image in zip(items, images)]
        logits = torch.from_numpy(self._run(images)['logits'])
        return [self._label_map(item, one) for item, one in zip(items, logits)]

    def _run(self, images: np.ndarray) -> dict[str, np.ndarray]:
        try:
            return self.runtime.run(images)
        except Exception as error:  # each runtime raises its own
            text = str(error).lower()
            if isinstance(error, MemoryError) or 'alloc' in text or 'out of memory' in text:
                raise Skipped('no memory for it: lower --batch-size, or export with a smaller size') from error
            raise Skipped(f'the model refuses it ({reason(error)})') from error

    def _item(self, image: np.ndarray, path: Path, image_id: int, name: str, frame: int | None) -> Item:
        prepared = image if self.metadata.resize is None else self.metadata.resize(image)
        height, width = prepared.shape[:2]
        if min(height, width) < self.metadata.min_size:
            raise Skipped(
                f'the model would take it as {width}x{height} pixels, and the exported file is for at least '
                f'{self.metadata.min_size} a side'
            )
        if self.metadata.channel_order == 'RGB':
            prepared = prepared[..., ::-1]
        return Item(image_id, path, name, frame, image, dict(inputs=prepared.transpose(2, 0, 1)))

    def _label_map(self, item: Item, logits: torch.Tensor) -> np.ndarray:
        """``(H, W)`` of class indices: as in mmseg, logits are enlarged before the best class is taken."""
        size = item.image.shape[:2]
        if logits.shape[1:] != size:
            align = self.metadata.align_corners
            logits = F.interpolate(logits[None], size, mode='bilinear', align_corners=align)[0]
        if len(logits) == 1:
            return (logits[0].sigmoid() > self.metadata.binary_threshold).numpy().astype(np.int64)
        return logits.argmax(0).numpy()

    def _instances(self, item: Item, outputs: dict[str, np.ndarray]) -> Instances:
        """Objects in pixels of the image, from those in pixels of what the file was given."""
        height, width = item.image.shape[:2]
        prepared_height, prepared_width = item.packed['inputs'].shape[1:]
        scale = np.float32([width / prepared_width, height / prepared_height] * 2)
        masks = outputs.get('masks')
        if masks is not None:
            masks = np.array([_resized(mask, height, width) for mask in masks], bool).reshape(-1, height, width)
        return Instances(outputs['boxes'] * scale, outputs['labels'], outputs['scores'], masks)


def _resized(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask ``(h, w)`` in another size: where at least half of it is."""
    if mask.shape == (height, width):
        return mask != 0
    return cv2.resize((mask != 0).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR) >= 0.5
