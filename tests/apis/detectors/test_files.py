from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from small_detectors import MASK_RCNN, small_detector

from cvt_dense.apis.detectors.check import predict
from cvt_dense.apis.detectors.detections import Detections
from cvt_dense.apis.detectors.files import as_function, export_detector
from cvt_dense.apis.detectors.pictures import draw
from cvt_dense.errors import UserError

CASCADE, FASTER_RCNN, RETINANET = (
    f'{name}_fpn_coco{suffix}'
    for name, suffix in (('cascademaskrcnn_cvt13', '_3x'), ('fasterrcnn_cvt13', ''), ('retinanet_cvt13', ''))
)
GENERIC = dict(
    type='GenericRoIExtractor',
    roi_layer=dict(type='RoIAlign', output_size=14),
    out_channels=16,
    featmap_strides=[4, 8, 16],
)
ROI_ALIGN = 'roi_head__bbox_roi_extractor__roi_layer__'


@pytest.mark.parametrize(
    ('config', 'settings'),
    [
        (MASK_RCNN, {}),
        (MASK_RCNN, dict(data_preprocessor__pad_size_divisor=1, backbone__ignore_padding=False)),
        (MASK_RCNN, dict(backbone__ignore_padding=False, data_preprocessor__pad_value=9)),
        (MASK_RCNN, dict(roi_head__bbox_head__reg_class_agnostic=True, roi_head__mask_head__class_agnostic=True)),
        (MASK_RCNN, {f'{ROI_ALIGN}sampling_ratio': 2, f'{ROI_ALIGN}aligned': False}),
        (MASK_RCNN, dict(roi_head__bbox_roi_extractor__finest_scale=14, test_cfg__rcnn__mask_thr_binary=0.3)),
        (MASK_RCNN, dict(test_cfg__rcnn__nms__class_agnostic=True, test_cfg__rcnn__max_per_img=-1)),
        (MASK_RCNN, dict(test_cfg__rpn__min_bbox_size=20, rpn_head__loss_cls__use_sigmoid=False)),
        (MASK_RCNN, dict(roi_head__bbox_head__bbox_coder__clip_border=False, rpn_head__num_convs=2)),
        (MASK_RCNN, dict(rpn_head__bbox_coder__add_ctr_clamp=True, rpn_head__bbox_coder__ctr_clamp=2)),
        (FASTER_RCNN, {}),
        ('maskrcnn_cmtxs_fpn_coco', {}),
        (CASCADE, {}),
        (CASCADE, {f'roi_head__bbox_head__{stage}__reg_class_agnostic': False for stage in range(3)}),
        (RETINANET, dict(test_cfg__score_thr=0.01)),
        (RETINANET, dict(bbox_head__type='RetinaSepBNHead', bbox_head__num_ins=5, test_cfg__score_thr=0.01)),
        (RETINANET, dict(bbox_head__loss_cls=dict(type='CrossEntropyLoss', _delete_=True), test_cfg__min_bbox_size=30)),
    ],
)
def test_a_detector_as_a_function_finds_what_mmdet_finds(config: str, settings: dict[str, Any]) -> None:
    detector = small_detector(config, **settings)
    function, image = as_function(detector), draw(0, 131, 158)
    with torch.no_grad():
        found = Detections.of(function(image))
    expected = predict(detector, image)
    assert len(expected.scores) >= 5
    for ours, theirs in zip(found, expected, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ('config', 'settings', 'line'),
    [
        (MASK_RCNN, dict(test_cfg__rcnn__nms__type='soft_nms'), r"test_cfg.rcnn.nms.type='soft_nms'"),
        (MASK_RCNN, dict(test_cfg__rpn__nms__offset=1), r'test_cfg.rpn.nms.offset=1'),
        (MASK_RCNN, dict(test_cfg__rpn__nms_pre=-1), r'test_cfg.rpn.nms_pre=-1'),
        (RETINANET, dict(test_cfg__nms=None), r'test_cfg.nms=None'),
        (RETINANET, dict(test_cfg__max_per_img=-1), r'test_cfg.max_per_img=-1'),
        (MASK_RCNN, dict(test_cfg__rcnn__mask_thr_binary=-1), r'test_cfg.rcnn.mask_thr_binary=-1'),
        (MASK_RCNN, {f'{ROI_ALIGN}pool_mode': 'max'}, r"roi_head.bbox_roi_extractor.roi_layer.pool_mode='max'"),
        (
            MASK_RCNN,
            dict(roi_head__bbox_roi_extractor__roi_layer=dict(type='RoIPool', output_size=7, _delete_=True)),
            r"roi_head.bbox_roi_extractor.roi_layer.type='RoIPool'",
        ),
        (
            MASK_RCNN,
            dict(roi_head__mask_roi_extractor=dict(GENERIC, _delete_=True)),
            r"roi_head.mask_roi_extractor.type='GenericRoIExtractor'",
        ),
        (
            MASK_RCNN,
            dict(rpn_head__bbox_coder=dict(type='LegacyDeltaXYWHBBoxCoder', _delete_=True)),
            r"rpn_head.bbox_coder.type='LegacyDeltaXYWHBBoxCoder'",
        ),
        (
            RETINANET,
            dict(type='ATSS', bbox_head__type='ATSSHead', bbox_head__norm_cfg=None),
            r"bbox_head.type='ATSSHead'",
        ),
    ],
)
def test_what_is_not_known_is_refused_by_name(config: str, settings: dict[str, Any], line: str) -> None:
    detector = small_detector(config, **settings)
    with pytest.raises(UserError, match=rf'^a whole detector with {line} is not exported, .* is: change it, or take'):
        as_function(detector)


@pytest.mark.slow
def test_a_file_has_standard_operators_alone(tmp_path: Path) -> None:
    path = tmp_path / 'detector.onnx'
    export_detector(small_detector(RETINANET), path)  # which compares
    assert list(tmp_path.iterdir()) == [path]
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {''}
    assert [output.name for output in graph.output] == ['boxes', 'scores', 'labels']


def test_other_formats_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'detector.pt2: the ending says the format, and is one of .onnx$'):
        export_detector(small_detector(), tmp_path / 'detector.pt2')
