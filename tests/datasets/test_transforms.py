from __future__ import annotations

from typing import Any

import mmdet.datasets.transforms  # noqa: F401  registers them
import mmseg.datasets.transforms  # noqa: F401
import numpy as np
import pytest
from mmcv.transforms import Compose
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import DefaultScope

import cvt_dense  # noqa: F401  registers them


def pipeline(*steps: dict[str, Any], scope: str = 'mmdet') -> Compose:
    with DefaultScope.overwrite_default_scope(scope):
        return Compose(list(steps))


def loaded(height: int = 30, width: int = 40) -> dict[str, Any]:
    return dict(
        img=np.full((height, width, 3), 9, np.uint8),
        img_shape=(height, width),
        ori_shape=(height, width),
        gt_seg_map=np.full((height, width), 3, np.uint8),
    )


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
@pytest.mark.parametrize(
    ('settings', 'padded'),
    [(dict(size=(64, 48)), (48, 64)), (dict(size_divisor=32), (32, 64)), (dict(pad_to_square=True), (40, 40))],
)
def test_it_pads_as_the_toolkit_and_leaves_img_shape(
    scope: str, settings: dict[str, Any], padded: tuple[int, int]
) -> None:
    settings = dict(settings, pad_val=dict(img=114, seg=255))
    expected = pipeline(dict(type='Pad', **settings), scope=scope)(loaded())
    found = pipeline(dict(type='PadKeepImgShape', **settings), scope=scope)(loaded())
    assert found['img'].shape[:2] == found['pad_shape'][:2] == padded
    assert found['img_shape'] == (30, 40)
    for name in ('img', 'gt_seg_map'):
        np.testing.assert_array_equal(found[name], expected[name])
    assert found.keys() == expected.keys()


def test_masks_are_padded_with_the_image() -> None:
    masks = BitmapMasks(np.ones((1, 30, 40), np.uint8), 30, 40)
    found = pipeline(dict(type='PadKeepImgShape', size_divisor=32))(loaded() | dict(gt_masks=masks))
    assert found['gt_masks'].masks.shape == (1, 32, 64)


def test_settings_that_pad_does_not_know_are_refused() -> None:
    with pytest.raises(TypeError, match='sizes'):
        pipeline(dict(type='PadKeepImgShape', sizes=3))
