"""What heads that start from anchors find: proposals of an RPN, and detections of RetinaNet and its kind."""

from __future__ import annotations

from typing import Any

import torch
from mmdet.models.dense_heads import AnchorHead, RetinaSepBNHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors.single_stage import SingleStageDetector
from mmdet.models.task_modules.prior_generators import AnchorGenerator
from torch import nn

from .boxes import Decoder, Size, Suppression, are_larger, highest, joined, positive, rows_of
from .features import Features
from .support import check_methods, refuse

_PREDICTION = 'predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process'


class Anchors(nn.Module):
    """The head itself, up to the scores and boxes of each anchor.

    Args:
        head: Of an RPN, or a dense one.
        setting: Where the config has it.

    Raises:
        UserError: If its anchors or boxes are of an unknown kind.
    """

    def __init__(self, head: nn.Module, setting: str) -> None:
        super().__init__()
        methods = 'grid_priors', 'single_level_grid_priors'
        check_methods(head.prior_generator, AnchorGenerator, *methods, setting=f'{setting}.anchor_generator')
        if getattr(head.loss_cls, 'custom_cls_channels', False):
            refuse(f'{setting}.loss_cls.type={type(head.loss_cls).__name__!r}', 'a sigmoid or softmax is')
        self.head = head
        self.largest_stride: int = max(map(max, head.prior_generator.strides))
        self.decode = Decoder(head.bbox_coder, f'{setting}.bbox_coder')

    def forward(self, maps: tuple[torch.Tensor, ...]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of each level: ``(n, classes)`` scores, ``(n, 4)`` differences, and the ``(n, 4)`` anchors."""
        logits, deltas = self.head(maps)
        sizes = [tuple(x.shape[2:]) for x in logits]
        anchors = self.head.prior_generator.grid_priors(sizes, device=logits[0].device)
        scores = [self._scores(rows_of(x, self.head.cls_out_channels)) for x in logits]
        return list(zip(scores, [rows_of(x, 4) for x in deltas], anchors, strict=True))

    def _scores(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.sigmoid() if self.head.use_sigmoid_cls else logits.softmax(1)[:, :-1]


class Proposals(nn.Module):
    """An RPN.

    Args:
        head: The config's.

    Raises:
        UserError: If it is of another kind, or a setting is not known.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        check_methods(head, RPNHead, *_PREDICTION, setting='rpn_head')
        if head.num_classes != 1:
            refuse(f'rpn_head.num_classes={head.num_classes}', '1 is')
        cfg: dict[str, Any] = head.test_cfg
        self.anchors = Anchors(head, 'rpn_head')
        self.suppress = Suppression.of(cfg, 'test_cfg.rpn')
        self.per_level = positive(cfg, 'nms_pre', 'test_cfg.rpn')
        self.min_side = cfg.get('min_bbox_size', -1)

    def forward(self, maps: tuple[torch.Tensor, ...], size: Size) -> torch.Tensor:
        """``(n, 4)`` boxes in an image of ``size``, the best first."""
        levels = []
        for level, (scores, deltas, anchors) in enumerate(self.anchors(maps)):
            scores, places = highest(scores[:, 0], self.per_level)
            levels.append((scores, deltas[places], anchors[places], torch.full_like(places, level)))
        scores, deltas, anchors, levels = joined(levels)
        boxes = self.anchors.decode(anchors, deltas, size)
        if self.min_side >= 0:
            (kept,) = are_larger(boxes, self.min_side).nonzero(as_tuple=True)
            boxes, scores, levels = boxes[kept], scores[kept], levels[kept]
        return boxes[self.suppress(boxes, scores, levels)]


class OneStage(nn.Module):
    """RetinaNet, and detectors that predict as it does, as a function of one image.

    Args:
        model: The detector.

    Raises:
        UserError: If a part of it is of another kind, or a setting is not known.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_methods(model, SingleStageDetector, 'extract_feat', setting='model')
        head = model.bbox_head
        check_methods(head, BaseDenseHead, *_PREDICTION, setting='bbox_head')
        own = RetinaSepBNHead if isinstance(head, RetinaSepBNHead) else AnchorHead
        check_methods(head, own, 'forward', setting='bbox_head')
        cfg: dict[str, Any] = head.test_cfg
        self.features = Features(model)
        self.anchors = Anchors(head, 'bbox_head')
        self.largest_stride = self.anchors.largest_stride
        self.suppress = Suppression.of(cfg, 'test_cfg')
        self.per_level = positive(cfg, 'nms_pre', 'test_cfg')
        self.min_side = cfg.get('min_bbox_size', -1)
        self.register_buffer('score_thr', torch.tensor(float(cfg.get('score_thr', 0))))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Boxes ``(n, 4)``, scores ``(n,)`` and labels ``(n,)`` in ``(1, C, H, W)`` pixels, the best first."""
        size = images.shape[2:]
        levels = []
        for scores, deltas, anchors in self.anchors(self.features(images)):
            classes = scores.shape[1]
            scores, places = highest(scores.flatten(), self.per_level)
            rows = places // classes
            levels.append((scores, places % classes, deltas[rows], anchors[rows]))
        scores, labels, deltas, anchors = joined(levels)
        boxes = self.anchors.decode(anchors, deltas, size)
        # mmdet asks for the score before it ranks: what passes is the same, and here its number does not depend on it.
        passes = scores > self.score_thr
        if self.min_side >= 0:
            passes = passes & are_larger(boxes, self.min_side)
        (kept,) = passes.nonzero(as_tuple=True)
        boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
        kept = self.suppress(boxes, scores, labels)
        return boxes[kept], scores[kept], labels[kept]
