"""What exported files say of themselves, from the configs that users have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from mmdet.datasets import CocoDataset
from paths import ROOT

from cvt_dense.apis.describe import describe
from cvt_dense.apis.export import MIN_SIZE
from cvt_dense.apis.metadata import Metadata, Resize
from cvt_dense.engine.config import load_config
from cvt_dense.visualization.painter import SCORE_THRESHOLD

HEAD = SimpleNamespace(align_corners=False, out_channels=150, threshold=None)


def described(config: str, part: str = 'all', model: object = None, **options: object) -> Metadata:
    cfg = load_config(ROOT / f'configs/{config}.py', options)
    return describe(cfg, model or SimpleNamespace(decode_head=HEAD), part)


def test_a_segmentor_says_its_classes_and_how_images_are_resized() -> None:
    meta = described('upernet_cvt13_ade20k')
    assert (meta.task, meta.channel_order, meta.min_size) == ('segmentation', 'RGB', MIN_SIZE)
    assert meta.resize == Resize((2048, 512), keep_ratio=True)
    assert meta.cannot_prepare is None
    assert meta.classes[:2] == ('wall', 'building')
    assert meta.category_ids == tuple(range(150))
    assert meta.palette[0] == [120, 120, 120]
    assert (meta.binary_threshold, meta.score_threshold) == (None, None)
    binary = SimpleNamespace(align_corners=True, out_channels=1, threshold=0.3)
    meta = described('upernet_cvttiny_shapes', model=SimpleNamespace(decode_head=binary))
    assert (meta.resize, meta.align_corners, meta.binary_threshold) == (None, True, 0.3)
    assert Metadata.from_json(meta.to_json(), '') == meta


def test_a_detector_has_the_numbers_of_cocos_classes_and_the_checkpoints_names() -> None:
    meta = described('maskrcnn_cvt13_fpn_coco')
    assert (meta.task, meta.classes) == ('detection', CocoDataset.METAINFO['classes'])
    assert (meta.category_ids[0], meta.category_ids[-1]) == (1, 90)
    assert (meta.resize, meta.score_threshold) == (Resize((1333, 800), keep_ratio=True), SCORE_THRESHOLD)
    named = SimpleNamespace(dataset_meta=dict(CLASSES=('cat', 'dog'), palette='random'))
    meta = described('maskrcnn_cvt13_fpn_coco', model=named)
    assert (meta.classes, meta.category_ids, meta.palette) == (('cat', 'dog'), (1, 2), None)
    assert Metadata.from_json(meta.to_json(), '') == meta


def test_a_part_says_how_images_are_prepared_and_no_more() -> None:
    meta = described('maskrcnn_cvt13_fpn_coco', 'neck')
    assert meta == Metadata('features', 'RGB', MIN_SIZE, Resize((1333, 800), keep_ratio=True))


@pytest.mark.parametrize(
    ('options', 'why'),
    [
        ({'model.test_cfg.mode': 'slide'}, 'crops that slide over the image'),
        ({'test_dataloader.dataset.pipeline.1.type': 'RandomResize'}, 'the test pipeline has RandomResize'),
        ({'test_dataloader.dataset.pipeline.1.backend': 'pillow'}, 'is not one by OpenCV'),
        ({'test_dataloader.dataset.pipeline.0.imdecode_backend': 'pillow'}, 'has imdecode_backend=pillow'),
        ({'test_dataloader': None}, 'the config has no test_dataloader.dataset.pipeline'),
    ],
    ids=lambda value: '' if isinstance(value, dict) else value,
)
def test_what_a_file_cannot_say_it_gives_the_reason_for(options: dict, why: str) -> None:
    meta = described('upernet_cvt13_ade20k', **options)
    assert why in meta.cannot_prepare
