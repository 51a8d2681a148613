"""Compare an exported detector with mmdet's own prediction.

Two exact computations of one detector differ by rounding, and rounding decides where two scores are as good as equal,
or two boxes overlap by just the threshold. So the model is asked again, on the same image with noise that nobody could
see. What it finds in all of these has to be in what the file finds; and what the file finds, in one of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from mmdet.structures import DetDataSample
from torch import nn

from ...errors import UserError, reason
from .detections import Detections, missing, swaps
from .pictures import draw

#: An exported detector: ``(1, C, H, W)`` images and a threshold for scores, or None for its own, to detections.
Exported = Callable[[torch.Tensor, float | None], Detections]

#: Height and width of what is compared.
CHECKED_SIZES = ((161, 170), (226, 163), (167, 437))
#: Of the noise, in values of 0 to 255: a hundred times what rounding makes of them.
NOISE = 0.001
REPEATS = 2
#: Detections that score less are not compared.
MIN_SCORE = 1e-5
#: Share of the detections that may be swapped, beside one.
MAX_SWAPPED = 0.02
#: Share of what the model finds that it has to find again for a comparison to mean something.
MIN_SETTLED = 0.7


def check(model: nn.Module, exported: Exported) -> None:
    """Compare on images of several sizes, at the model's own threshold and at a lower one, and on an image of nothing.

    Args:
        model: mmdet's detector, in eval mode.
        exported: What was made of it.

    Raises:
        UserError: If it finds something else, or fails; or if there is nothing that could be compared.
    """
    model = copy.deepcopy(model)
    total = settled = 0
    for number, (height, width) in enumerate(CHECKED_SIZES):
        image = draw(number, height, width)
        where = f'the exported model is not the one of PyTorch on an image of {height}x{width}, and was not kept'
        all_scores = predict(model, image, 0.0).scores
        # Just below the lowest score: no candidate is ranked in vain.
        lowest = max(all_scores.min().item() * (1 - 1e-4) if len(all_scores) else 0.0, MIN_SCORE)
        for threshold in (lowest, None):
            found = _run(exported, image, threshold, where)
            numbers = _compare(model, image, threshold, found, where)
            total, settled = total + numbers[0], settled + numbers[1]
        nothing = _run(exported, image, 1.0, where)
        _check_empty(nothing, found, where)
    if settled < MIN_SETTLED * total or not settled:
        raise UserError(
            f'the exported model cannot be compared, and was not kept: of {total} detections in drawn images, PyTorch '
            f'finds {settled} again with noise of {NOISE} added to the pixels; train it, or give a checkpoint'
        )


def predict(model: nn.Module, image: torch.Tensor, threshold: float | None = None) -> Detections:
    """What mmdet's own ``model.test_step`` finds.

    Args:
        model: The detector.
        image: ``(1, C, H, W)``, channels in the order of the config's mean.
        threshold: For scores; None for the config's.
    """
    size = tuple(image.shape[2:])
    sample = DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0)))
    swaps = model.data_preprocessor._channel_conversion
    with _threshold(model, threshold), torch.no_grad():
        (result,) = model.test_step(dict(inputs=[image[0].flip(0) if swaps else image[0]], data_samples=[sample]))
    found = result.pred_instances
    return Detections(found.bboxes, found.scores, found.labels, found.get('masks'))


@contextmanager
def _threshold(model: nn.Module, threshold: float | None) -> Iterator[None]:
    head = getattr(model, 'roi_head', None) or model.bbox_head
    own = head.test_cfg
    if threshold is not None:
        head.test_cfg = copy.deepcopy(own)
        head.test_cfg['score_thr'] = threshold
    try:
        yield
    finally:
        head.test_cfg = own


def _run(exported: Exported, image: torch.Tensor, threshold: float | None, where: str) -> Detections:
    try:
        return exported(image, threshold)
    except Exception as error:  # runtimes raise their own
        raise UserError(f'{where}: {type(error).__name__}: {reason(error)}') from error


def _compare(
    model: nn.Module, image: torch.Tensor, threshold: float | None, found: Detections, where: str
) -> tuple[int, int]:
    """How many detections the model finds, and how many of them with noise too.

    Raises:
        UserError: If the exported model does not find these, or finds others.
    """
    generator = torch.Generator().manual_seed(0)
    expected = predict(model, image, threshold)
    again = [
        predict(model, image + NOISE * (2 * torch.rand(image.shape, generator=generator) - 1), threshold)
        for _ in range(REPEATS)
    ]
    if found.boxes.dtype != expected.boxes.dtype or found.labels.dtype != expected.labels.dtype:
        raise UserError(f'{where}: boxes of {found.boxes.dtype} and labels of {found.labels.dtype}')
    if (found.scores.diff() > 1e-6).any():
        raise UserError(f'{where}: scores are not in falling order')
    unsettled = {index for others in again for index in missing(expected, others)}
    alone = missing(expected, found)
    absent = set(alone) - unsettled
    strange = set(missing(found, expected)).intersection(*(missing(found, others) for others in again))
    swapped = swaps(expected, alone, found, strange)
    if len(swapped) <= 1 + MAX_SWAPPED * len(expected.scores):
        absent, strange = absent - set(swapped), strange - set(swapped.values())
    if absent:
        raise UserError(f'{where}: it lacks {len(absent)} of {len(expected.scores)} detections')
    if strange or len(found.scores) > len(expected.scores) + len(unsettled):
        raise UserError(f'{where}: it has {len(strange)} detections that are not among {len(expected.scores)}')
    return len(expected.scores), len(expected.scores) - len(unsettled | set(swapped))


def _check_empty(nothing: Detections, some: Detections, where: str) -> None:
    for ours, theirs in zip(nothing, some, strict=True):
        if theirs is not None and (ours.shape[1:] != theirs.shape[1:] or len(ours) != 0):
            raise UserError(f'{where}: shape {tuple(ours.shape)} where there is nothing')
