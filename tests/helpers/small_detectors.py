"""Detectors that are small enough to be built and run in a second, with random heads."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import MMLogger
from paths import ROOT
from torch import nn

from cvt_dense.engine.config import load_config
from cvt_dense.engine.model import build_model

MASK_RCNN = 'maskrcnn_cvttiny_fpn_shapes'
_ARCH = dict(embed_dims=[8, 16, 32], num_heads=[1, 2, 2], depths=[1, 1, 1])
_PROPOSALS = dict(nms_pre=60, max_per_img=40)


def small_detector(config: str = MASK_RCNN, **settings: Any) -> nn.Module:
    """A config's detector, narrower, in eval mode.

    Args:
        config: Name of one of this project's.
        settings: Of the config, ``.`` written as ``__``.
    """
    cfg = load_config(str(ROOT / f'configs/{config}.py'), {})
    backbone, model = cfg.model.backbone, cfg.model
    backbone.init_cfg = None
    if backbone.type == 'CvT':
        backbone.arch = dict(_ARCH)
        model.neck.in_channels = [_ARCH['embed_dims'][i] for i in backbone.out_indices]
    model.neck.out_channels = width = 16
    model.neck.norm_cfg = None
    heads = [model[name] for name in ('rpn_head', 'bbox_head') if name in model]
    for head in heads:
        head.in_channels = head.feat_channels = width
    if 'bbox_head' in model:
        model.bbox_head.stacked_convs, model.bbox_head.num_classes = 1, 4
        model.test_cfg.nms_pre = 60
    if 'roi_head' in model:
        roi_head = model.roi_head
        model.test_cfg.rpn.update(_PROPOSALS)
        for extractor in (roi_head.bbox_roi_extractor, roi_head.mask_roi_extractor):
            if extractor is not None:
                extractor.out_channels = width
        for head in roi_head.bbox_head if isinstance(roi_head.bbox_head, list) else [roi_head.bbox_head]:
            head.update(in_channels=width, fc_out_channels=32, num_classes=5)
        if roi_head.mask_head is not None:
            roi_head.mask_head.update(num_convs=1, in_channels=width, conv_out_channels=width, num_classes=5)
            roi_head.mask_head.norm_cfg = None
    cfg.merge_from_dict({f'model.{key.replace("__", ".")}': value for key, value in settings.items()})
    torch.manual_seed(0)
    detector = build_model(cfg)
    MMLogger.get_current_instance().setLevel('WARNING')  # init_weights lists every parameter
    detector.init_weights()
    for name, parameter in detector.named_parameters():
        # Heads start with all scores and boxes nearly alike; here they are to differ, as if they were trained.
        if parameter.ndim > 1 and not name.startswith(('backbone.', 'neck.')):
            nn.init.kaiming_normal_(parameter)
    return detector.eval()
