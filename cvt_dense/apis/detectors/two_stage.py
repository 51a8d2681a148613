"""Faster, Mask and Cascade R-CNN as functions of one image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.detectors.two_stage import TwoStageDetector
from mmdet.models.roi_heads import BaseRoIHead, CascadeRoIHead, StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from torch import nn

from .anchors import Proposals
from .boxes import Decoder, Size, Suppression
from .features import Features
from .masks import paste
from .regions import Regions
from .support import check_methods, refuse

_STANDARD = 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward'
_CASCADE = *_STANDARD, '_refine_roi'


class Stage(nn.Module):
    """A head and what it looks at.

    Args:
        head: The config's.
        regions: What it looks at.
        shared: What comes between the two, if anything.
    """

    def __init__(self, head: nn.Module, regions: Regions, shared: nn.Module | None) -> None:
        super().__init__()
        self.head, self.regions, self.shared = head, regions, shared

    def look(self, maps: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> Any:
        """What the head gives for ``(n, 4)`` boxes and one more: runtimes fail in some layers without any."""
        pooled = self.regions(maps, torch.cat((boxes, boxes.new_tensor([[0.0, 0.0, 1.0, 1.0]]))))
        return self.head(pooled if self.shared is None else self.shared(pooled))


class BoxStage(Stage):
    """A box head and what it looks at; a Cascade R-CNN has several.

    Args:
        head: The config's.
        regions: What it looks at.
        shared: What comes between the two, if anything.
        setting: Where the config has it.

    Raises:
        UserError: If it is of another kind.
    """

    def __init__(self, head: nn.Module, regions: Regions, shared: nn.Module | None, setting: str) -> None:
        super().__init__(head, regions, shared)
        methods = 'predict_by_feat', '_predict_by_feat_single', 'regress_by_class'
        check_methods(head, BBoxHead, *methods, setting=setting)
        if head.custom_cls_channels or head.custom_activation:
            refuse(f'{setting}.loss_cls.type={type(head.loss_cls).__name__!r}', 'a softmax is')
        for name in ('with_cls', 'with_reg'):
            if not getattr(head, name):
                refuse(f'{setting}.{name}=False', 'True is')
        self.decode = Decoder(head.bbox_coder, f'{setting}.bbox_coder')

    def forward(self, maps: tuple[torch.Tensor, ...], boxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(n, classes + 1)`` logits and ``(n, classes or 1, 4)`` differences of ``(n, 4)`` boxes."""
        logits, deltas = (x[: boxes.shape[0]] for x in self.look(maps, boxes))
        return logits, deltas.reshape(boxes.shape[0], deltas.shape[1] // 4, 4)

    def refined(self, boxes: torch.Tensor, logits: torch.Tensor, deltas: torch.Tensor, size: Size) -> torch.Tensor:
        """Boxes as the class with the highest logit has them."""
        return self.decode(boxes, picked(deltas, logits[:, :-1].argmax(1)), size)


class MaskStage(Stage):
    """A mask head and what it looks at.

    Args:
        head: The config's.
        regions: What it looks at.
        shared: What comes between the two, if anything.
        setting: Where the config has it.

    Raises:
        UserError: If it is of another kind.
    """

    def __init__(self, head: nn.Module, regions: Regions, shared: nn.Module | None, setting: str) -> None:
        super().__init__(head, regions, shared)
        check_methods(head, FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single', 'forward', setting=setting)

    def forward(self, maps: tuple[torch.Tensor, ...], boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """``(n, m, m)`` probabilities of ``(n, 4)`` boxes."""
        return picked(self.look(maps, boxes)[: boxes.shape[0]], labels).sigmoid()


class TwoStage(nn.Module):
    """Faster, Mask or Cascade R-CNN as a function of one image.

    Args:
        model: The detector.

    Raises:
        UserError: If a part of it is of another kind, or a setting is not known.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        check_methods(model, TwoStageDetector, 'extract_feat', setting='model')
        if not model.with_rpn:
            refuse('no rpn_head', 'one is')
        roi_head = model.roi_head
        is_cascade = isinstance(roi_head, CascadeRoIHead)
        owner, methods = (CascadeRoIHead, _CASCADE) if is_cascade else (StandardRoIHead, _STANDARD)
        check_methods(roi_head, owner, *methods, setting='roi_head')
        check_methods(roi_head, BaseRoIHead, 'predict', setting='roi_head')
        shared = roi_head.shared_head if roi_head.with_shared_head else None
        self.features = Features(model)
        self.proposals = Proposals(model.rpn_head)
        self.largest_stride = self.proposals.anchors.largest_stride
        self.box_stages = nn.ModuleList(
            BoxStage(head, Regions(extractor, 'roi_head.bbox_roi_extractor'), shared, 'roi_head.bbox_head')
            for head, extractor in zip(_listed(roi_head.bbox_head), _listed(roi_head.bbox_roi_extractor), strict=True)
        )
        self.mask_stages = nn.ModuleList()
        cfg: dict[str, Any] = roi_head.test_cfg
        if roi_head.with_mask:
            self.mask_stages.extend(
                MaskStage(head, Regions(extractor, 'roi_head.mask_roi_extractor'), shared, 'roi_head.mask_head')
                for head, extractor in zip(
                    _listed(roi_head.mask_head), _listed(roi_head.mask_roi_extractor), strict=True
                )
            )
            self.mask_threshold = cfg.get('mask_thr_binary', -1)
            if self.mask_threshold < 0:
                refuse(f'test_cfg.rcnn.mask_thr_binary={cfg.get("mask_thr_binary")!r}', 'a number from 0 on is')
        self.suppress = Suppression.of(cfg, 'test_cfg.rcnn', unlimited=True)
        self.register_buffer('score_thr', torch.tensor(float(cfg['score_thr'])))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Boxes ``(n, 4)``, scores ``(n,)``, labels ``(n,)`` and masks ``(n, H, W)``, if any, the best first.

        Args:
            images: ``(1, C, H, W)`` pixels.
        """
        size = images.shape[2:]
        maps = self.features(images)
        boxes, scores, labels = self._boxes(maps, self.proposals(maps, size), size)
        if not self.mask_stages:
            return boxes, scores, labels
        masks = sum(stage(maps, boxes, labels) for stage in self.mask_stages) / len(self.mask_stages)
        return boxes, scores, labels, paste(masks, boxes, size, self.mask_threshold)

    def _boxes(self, maps: tuple[torch.Tensor, ...], boxes: torch.Tensor, size: Size) -> tuple[torch.Tensor, ...]:
        total = 0
        for number, stage in enumerate(self.box_stages, 1):
            logits, deltas = stage(maps, boxes)
            total = total + logits
            if number < len(self.box_stages):
                boxes = stage.refined(boxes, logits, deltas, size)
        scores = (total / len(self.box_stages)).softmax(1)[:, :-1]
        rows, labels = (scores > self.score_thr).nonzero(as_tuple=True)
        scores = scores[rows, labels]
        boxes = self.box_stages[-1].decode(boxes[rows], picked(deltas[rows], labels), size)
        kept = self.suppress(boxes, scores, labels)
        return boxes[kept], scores[kept], labels[kept]


def picked(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``(n, …)`` of ``(n, classes, …)``: each row's class, or the only one of what does not depend on the class."""
    if x.shape[1] == 1:
        return x[:, 0]
    return x[torch.arange(x.shape[0], device=x.device), labels]


def _listed(parts: nn.Module) -> Sequence[nn.Module]:
    return list(parts) if isinstance(parts, nn.ModuleList) else [parts]
