"""What is written about predictions; tests/tools/test_predict.py reads all of it back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from mmdet.datasets import CocoDataset

from cvt_dense.apis.evaluation import category_ids
from cvt_dense.apis.output import make_even


def test_frames_get_even_sides() -> None:
    for height, width in ((4, 6), (5, 6), (4, 7), (5, 7)):
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        even = make_even(image)
        assert even.shape == (height + height % 2, width + width % 2, 3)
        assert np.array_equal(even[:height, :width], image)
        assert np.array_equal(even[-1, -1], image[-1, -1])


def test_cocos_classes_have_cocos_numbers(data: Path) -> None:
    categories = json.loads((data / 'coco_mini/annotations/instances_val2017.json').read_text())['categories']
    assert category_ids(CocoDataset.METAINFO['classes'], True) == [entry['id'] for entry in categories]
    assert [entry['name'] for entry in categories] == list(CocoDataset.METAINFO['classes'])


def test_other_classes_are_numbered_from_1_and_labels_of_maps_stay() -> None:
    assert category_ids(('cat', 'dog'), True) == [1, 2]
    assert category_ids(('cat', 'dog'), False) == [0, 1]
