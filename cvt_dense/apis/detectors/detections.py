"""What a detector finds in an image, and which of it two detectors agree on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torchvision.ops import box_iou

#: What two computations of one box may differ by: in pixels and as a share of its longer side ...
BOX_TOLERANCE, BOX_SHARE = 0.02, 1e-3
#: ... in its score, relative to it ...
SCORE_TOLERANCE = 2e-3
#: ... and in the pixels of its mask, as a share of those, for those whose value is next to the threshold.
MASK_TOLERANCE = 0.02
MASK_PIXELS = 4
#: Scores that differ by at most this share of them are equal but for rounding.
TIE = 1e-4
#: Below this, boxes do not suppress each other with any usual setting.
MIN_OVERLAP = 0.3


class Detections(NamedTuple):
    """Of one image.

    Attributes:
        boxes: ``(n, 4)`` float, x1 y1 x2 y2 in pixels.
        scores: ``(n,)`` float.
        labels: ``(n,)`` int64.
        masks: ``(n, H, W)`` bool; None of a detector without masks.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None = None

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Detections:
        """What an exported detector returns."""
        return cls(*tensors)


def missing(detections: Detections, others: Detections) -> list[int]:
    """Those detections that have no partner of their own among the others."""
    free = torch.ones(len(others.scores), dtype=torch.bool)
    lonely = []
    for index in range(len(detections.scores)):
        partners = free & _are_alike(detections, index, others)
        if partners.any():
            free[partners.nonzero()[0]] = False
        else:
            lonely.append(index)
    return lonely


def swaps(
    ours: Detections, our_indices: Iterable[int], theirs: Detections, their_indices: Iterable[int]
) -> dict[int, int]:
    """Pairs of one label and one score that overlap: which of them suppressed the other is a matter of rounding.

    Args:
        ours: Detections.
        our_indices: Those of them that have no partner.
        theirs: Other detections.
        their_indices: Likewise.
    """
    free, pairs = set(their_indices), {}
    for index in our_indices:
        for other in free:
            tied = (ours.scores[index] - theirs.scores[other]).abs() <= TIE * ours.scores[index]
            overlap = box_iou(ours.boxes[index, None], theirs.boxes[other, None])[0, 0]
            if ours.labels[index] == theirs.labels[other] and tied and overlap >= MIN_OVERLAP:
                pairs[index] = other
                free.remove(other)
                break
    return pairs


def _are_alike(detections: Detections, index: int, others: Detections) -> torch.Tensor:
    box, score = detections.boxes[index], detections.scores[index]
    apart = (others.boxes - box).abs().amax(1)
    side = (box[2:] - box[:2]).max()
    alike = (others.labels == detections.labels[index]) & (apart <= BOX_TOLERANCE + BOX_SHARE * side)
    alike &= (others.scores - score).abs() <= SCORE_TOLERANCE * score
    if detections.masks is not None:
        mask = detections.masks[index]
        for other in alike.nonzero()[:, 0].tolist():
            differing = (others.masks[other] ^ mask).sum()
            alike[other] = differing <= MASK_PIXELS + MASK_TOLERANCE * mask.sum()
    return alike
