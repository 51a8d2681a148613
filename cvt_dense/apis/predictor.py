"""A trained detector or segmentor on images: read and prepared as in its test pipeline."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from torch import Tensor

from ..engine.model import build_model
from ..errors import UserError, reason
from ..visualization.painter import Instances, Painter
from .evaluation import category_ids, inference_steps, metainfo_of, one_line_for_mistakes, tested_dataset
from .items import Item, Prediction, Skipped, readable


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
        self.detects = self.scope == 'mmdet'
        dataset = tested_dataset(cfg)
        self.model = build_model(cfg, checkpoint).to(device).eval()
        with self._in_scope(), one_line_for_mistakes():
            loading, *steps = inference_steps(dataset)
            self._load, self._prepare = Compose([loading]), Compose(steps)
        meta = metainfo_of(self.model, dataset, self.scope)
        self.classes: tuple[str, ...] = tuple(meta.get('classes') or ())
        self.category_ids = category_ids(self.classes, self.detects)
        self.painter = Painter.of(meta)

    def load(self, path: Path, image_id: int, name: str) -> Item:
        """Read an image, as for training: upright, three channels of 8 bits.

        Raises:
            Skipped: If it cannot be read.
        """
        with readable(path):
            loaded = self._load(dict(img_path=str(path), img_id=image_id))
        return self._item(loaded, path, image_id, name, None)

    def take(self, image: np.ndarray, path: Path, image_id: int, name: str, frame: int) -> Item:
        """Take a frame of a video, ``(H, W, 3)`` of uint8, BGR.

        Raises:
            Skipped: If the config's pipeline fails on it.
        """
        size = image.shape[:2]
        loaded = dict(img=image, img_path=str(path), img_id=image_id, img_shape=size, ori_shape=size)
        return self._item(loaded, path, image_id, name, frame)

    def predict(self, items: list[Item]) -> list[Prediction]:
        """What the model finds in images that are of one size for it.

        Raises:
            Skipped: If they are too large for the memory, or too small for the model.
        """
        try:
            with torch.no_grad(), self._in_scope():
                samples = self.model.test_step(pseudo_collate([item.packed for item in items]))
        except torch.OutOfMemoryError as error:
            raise Skipped("no memory for it: lower --batch-size, or the size in the config's test pipeline") from error
        except (ValueError, RuntimeError) as error:  # of images that are too small
            raise Skipped(f'the model refuses it ({reason(error)})') from error
        return [self._prediction(sample) for sample in samples]

    def _prediction(self, sample: BaseDataElement) -> Prediction:
        return Instances.of(sample.pred_instances) if self.detects else sample.pred_sem_seg.data[0].cpu().numpy()

    def prepared(self, item: Item) -> Tensor:
        """What the model's backbone gets of an image: ``(1, 3, h, w)``, normalised and without padding."""
        with torch.no_grad(), self._in_scope():
            batch = self.model.data_preprocessor(pseudo_collate([copy.deepcopy(item.packed)]))
        height, width = batch['data_samples'][0].get('img_shape', batch['inputs'].shape[2:])[:2]
        return batch['inputs'][..., :height, :width]

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
