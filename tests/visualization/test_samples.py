"""Ground truth beside prediction, from samples as mmdet's and mmseg's pipelines and models leave them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import demo
import numpy as np
import predict
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from cvt_dense.visualization.painter import TITLE_HEIGHT, Instances, Painter
from cvt_dense.visualization.samples import draw_sample

HEIGHT, WIDTH = 500, 600  # large enough to be drawn as they are
IMAGE = 200  # its grey
PAINTER = Painter(('cat', 'dog'), [(255, 0, 0), (0, 0, 255)])
BOXES = [[50.0, 100.0, 250.0, 300.0], [350.0, 200.0, 550.0, 400.0]]
CENTRES = [(200, 150), (300, 450)]  # row, column
# The image's grey under a mask, BGR, of a cat, of a dog and of what is ignored.
CAT, DOG, IGNORED, BARE = (120, 120, 222), (222, 120, 120), (184, 184, 184), (IMAGE,) * 3


def metainfo(folder: Path, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Any]:
    cv2.imwrite(str(folder / 'image.png'), np.full((height, width, 3), IMAGE, np.uint8))
    return dict(img_path=str(folder / 'image.png'), ori_shape=(height, width))


def bitmaps(boxes: list[list[float]]) -> np.ndarray:
    masks = np.zeros((len(boxes), HEIGHT, WIDTH), np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, np.array(boxes, int).reshape(-1, 4)):
        mask[y1:y2, x1:x2] = 1
    return masks


def true_instances(boxes: list[list[float]]) -> InstanceData:
    """All dogs."""
    return InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4),
        labels=torch.ones(len(boxes), dtype=torch.long),
        masks=BitmapMasks(bitmaps(boxes), HEIGHT, WIDTH),
    )


def detection(folder: Path) -> DetDataSample:
    """A dog on the left that is found as a cat, and one on the right that is found with too little certainty."""
    sample = DetDataSample(metainfo=metainfo(folder))
    sample.gt_instances, sample.ignored_instances = true_instances(BOXES), true_instances([])
    sample.pred_instances = InstanceData(
        bboxes=torch.tensor(BOXES),
        labels=torch.tensor([0, 1]),
        scores=torch.tensor([0.9, 0.29]),
        masks=torch.from_numpy(bitmaps(BOXES)).bool(),
    )
    return sample


def halves(picture: np.ndarray) -> list[np.ndarray]:
    return np.hsplit(picture[TITLE_HEIGHT:], 2)


def at_centres(half: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(half[row, column].tolist()) for row, column in CENTRES]


def test_truth_is_on_the_left_and_what_was_found_with_some_certainty_on_the_right(tmp_path: Path) -> None:
    picture = draw_sample(detection(tmp_path), PAINTER)
    assert picture.shape == (TITLE_HEIGHT + HEIGHT, 2 * WIDTH, 3)
    truth, prediction = halves(picture)
    assert at_centres(truth) == [DOG, DOG]
    assert at_centres(prediction) == [CAT, BARE]


def test_of_predictions_the_score_is_written_and_of_truth_the_class_alone(tmp_path: Path, texts: list[str]) -> None:
    draw_sample(detection(tmp_path), PAINTER)
    assert texts == ['dog', 'dog', 'cat 0.90', 'ground truth', 'prediction, scores from 0.3']


def test_predictions_look_as_those_that_the_tools_draw(tmp_path: Path) -> None:
    sample = detection(tmp_path)
    _, prediction = halves(draw_sample(sample, PAINTER))
    found = sample.pred_instances[sample.pred_instances.scores >= predict.SCORE_THRESHOLD]
    image = np.full((HEIGHT, WIDTH, 3), IMAGE, np.uint8)
    np.testing.assert_array_equal(prediction, PAINTER.draw_instances(image, Instances.of(found)))
    assert demo.SCORE_THRESHOLD == predict.SCORE_THRESHOLD


def test_ignored_truth_is_grey_and_says_so(tmp_path: Path, texts: list[str]) -> None:
    sample = detection(tmp_path)
    sample.gt_instances, sample.ignored_instances = true_instances(BOXES[:1]), true_instances(BOXES[1:])
    truth, _ = halves(draw_sample(sample, PAINTER))
    assert at_centres(truth) == [DOG, IGNORED]
    assert sorted(texts[:2]) == ['dog', 'dog (ignored)']


@pytest.mark.parametrize('kind', ['tensors', 'structures', 'polygons', 'boxes alone'])
def test_boxes_and_masks_of_any_kind_are_drawn(tmp_path: Path, kind: str) -> None:
    sample = detection(tmp_path)
    expected = draw_sample(sample, PAINTER)
    truth = sample.gt_instances
    if kind == 'tensors':
        truth.masks = torch.from_numpy(bitmaps(BOXES))
    elif kind == 'structures':
        truth.bboxes = HorizontalBoxes(torch.tensor(BOXES))
    elif kind == 'polygons':
        corners = [[np.array([x1, y1, x2, y1, x2, y2, x1, y2])] for x1, y1, x2, y2 in BOXES]
        truth.masks = PolygonMasks(corners, HEIGHT, WIDTH)
    else:
        del truth.masks
    del sample.ignored_instances  # which only mmdet's own pipelines write
    left, right = halves(draw_sample(sample, PAINTER))
    if kind == 'boxes alone':
        assert at_centres(left) == [BARE, BARE]
        assert (left != IMAGE).any()
    else:
        np.testing.assert_array_equal(left, halves(expected)[0])
    np.testing.assert_array_equal(right, halves(expected)[1])


def test_samples_stay_as_they_are_for_evaluation(tmp_path: Path) -> None:
    sample, untouched = detection(tmp_path), detection(tmp_path)
    draw_sample(sample, PAINTER)
    assert sample.gt_instances.keys() == untouched.gt_instances.keys()
    assert torch.equal(sample.gt_instances.bboxes, untouched.gt_instances.bboxes)
    np.testing.assert_array_equal(sample.gt_instances.masks.masks, untouched.gt_instances.masks.masks)
    for name, value in untouched.pred_instances.items():
        assert torch.equal(sample.pred_instances.get(name), value)


def test_what_finds_nothing_is_drawn_too(tmp_path: Path) -> None:
    sample = detection(tmp_path)
    sample.pred_instances = sample.pred_instances[:0]
    truth, prediction = halves(draw_sample(sample, PAINTER))
    assert at_centres(truth) == [DOG, DOG]
    assert (prediction == IMAGE).all()


@pytest.mark.parametrize('found', [InstanceData(), None])
def test_a_pipeline_without_annotations_is_named(tmp_path: Path, texts: list[str], found: InstanceData | None) -> None:
    """mmdet packs empty structures then."""
    sample = detection(tmp_path)
    del sample.gt_instances, sample.ignored_instances
    if found is not None:
        sample.gt_instances, sample.ignored_instances = found, found
    truth, prediction = halves(draw_sample(sample, PAINTER))
    assert (truth == IMAGE).all()
    assert at_centres(prediction) == [CAT, BARE]
    assert texts[-2] == 'ground truth: not loaded by the pipeline'


@pytest.mark.parametrize(('longest', 'expected'), [(100, 500), (160, 480), (600, 600), (2000, 800)])
def test_pictures_are_of_a_size_that_can_be_looked_at(tmp_path: Path, longest: int, expected: int) -> None:
    sample = DetDataSample(metainfo=metainfo(tmp_path, longest // 2, longest))
    assert draw_sample(sample, PAINTER).shape == (TITLE_HEIGHT + expected // 2, 2 * expected, 3)


def segmentation(folder: Path, found: int) -> SegDataSample:
    """A cat above what is unlabelled."""
    truth = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long)
    truth[:, HEIGHT // 2 :] = 255
    sample = SegDataSample(metainfo=metainfo(folder))
    sample.gt_sem_seg, sample.pred_sem_seg = PixelData(data=truth), PixelData(data=torch.full_like(truth, found))
    return sample


def test_label_maps_are_beside_each_other_and_the_unlabelled_is_left_bare(tmp_path: Path, texts: list[str]) -> None:
    truth, prediction = halves(draw_sample(segmentation(tmp_path, found=1), PAINTER))
    upper, lower = (100, 300), (400, 300)
    assert truth[upper].tolist() == [90, 90, 230]
    assert truth[lower].tolist() == list(BARE)
    assert prediction[upper].tolist() == prediction[lower].tolist() == [230, 90, 90]
    assert texts == ['cat 50.0%', 'unlabelled 50.0%', 'dog 100.0%', 'ground truth', 'prediction']


def test_a_model_of_many_classes_may_predict_label_255(tmp_path: Path, texts: list[str]) -> None:
    draw_sample(segmentation(tmp_path, found=255), Painter([f'number {i}' for i in range(300)]))
    assert texts[:3] == ['number 0 50.0%', 'unlabelled 50.0%', 'number 255 100.0%']
