"""Validation samples of mmdet and mmseg as pictures: the ground truth on the left, the prediction on the right."""

from __future__ import annotations

import cv2
import numpy as np
from mmengine.fileio import get
from mmengine.structures import BaseDataElement, InstanceData

from .painter import SCORE_THRESHOLD, Instances, Painter, side_by_side

#: Larger images are shrunk to it, in pixels.
MAX_SIDE = 800

_UNLABELLED = 255  # mmseg's default for pixels that count neither in training nor in evaluation
_NOTHING = Instances(boxes=np.zeros((0, 4)), labels=np.zeros(0, int))


def draw_sample(sample: BaseDataElement, painter: Painter) -> np.ndarray:
    """Draw what a sample has as ground truth, and what a model predicted for it.

    Args:
        sample: As evaluation takes it, in pixels of the image file: with label maps, or else with instances.
        painter: Of the data set's classes.

    Returns:
        ``(h, w, 3)`` of uint8, BGR.
    """
    image = cv2.imdecode(np.frombuffer(get(sample.img_path), np.uint8), cv2.IMREAD_COLOR)
    titles = ['ground truth', 'prediction']
    if 'pred_sem_seg' in sample:
        true, found = (sample.get(name).data[0].cpu().numpy() for name in ('gt_sem_seg', 'pred_sem_seg'))
        halves = [painter.draw_label_map(image, true, unlabelled=_UNLABELLED), painter.draw_label_map(image, found)]
    else:
        halves = [painter.draw_instances(image, part) for part in (_true_instances(sample), _found_instances(sample))]
        titles[1] = f'prediction, scores from {SCORE_THRESHOLD}'
        if 'bboxes' not in sample.get('gt_instances', ()):
            titles[0] = 'ground truth: not loaded by the pipeline'
    scale = min(1, MAX_SIDE / max(image.shape[:2]))
    halves = [cv2.resize(half, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for half in halves]
    return side_by_side(dict(zip(titles, halves)))


def _true_instances(sample: BaseDataElement) -> Instances:
    parts = []
    for name, is_ignored in (('gt_instances', False), ('ignored_instances', True)):
        if 'bboxes' in sample.get(name, ()):  # a pipeline without annotations leaves them empty
            part = sample.get(name).new()
            part.ignored = np.full(len(part), is_ignored)
            parts.append(part)
    return Instances.of(InstanceData.cat(parts)) if parts else _NOTHING


def _found_instances(sample: BaseDataElement) -> Instances:
    found = sample.get('pred_instances')
    return _NOTHING if found is None else Instances.of(found[found.scores >= SCORE_THRESHOLD])
