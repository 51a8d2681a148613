"""supervision reads what models return."""

from __future__ import annotations

import pytest
import supervision as sv
import torch
import transformers
from documents import run_block
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from tiny_timm import each_model


@each_model
def test_the_block_of_the_page_runs(name: str) -> None:
    classes = run_block('integrations', 'supervision', {'cvt_13': name})['classes']
    assert classes.class_id.tolist() == list(range(10))
    assert classes.confidence.sum() == pytest.approx(1, abs=1e-5)


def test_detections_of_transformers() -> None:
    model = run_block('integrations', 'transformers', {'cvt_13': 'small_cvt'})['model'].eval()
    with torch.no_grad():
        outputs = model(pixel_values=torch.rand(1, 3, 64, 64))
    processor = transformers.DetrImageProcessorPil()
    (result,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(64, 64)])
    detections = sv.Detections.from_transformers(result, id2label=model.config.id2label)
    assert len(detections) == model.config.num_queries


def test_detections_of_mmdetection() -> None:
    boxes = dict(bboxes=torch.rand(3, 4), scores=torch.rand(3), labels=torch.arange(3))
    found = InstanceData(**boxes, masks=torch.ones(3, 8, 8, dtype=torch.bool))
    detections = sv.Detections.from_mmdetection(DetDataSample(pred_instances=found))
    assert detections.class_id.tolist() == [0, 1, 2]
    assert detections.mask.shape == (3, 8, 8)
