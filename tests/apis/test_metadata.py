from __future__ import annotations

import json

import numpy as np
import pytest
from mmcv.transforms import Resize as TheirResize

from cvt_dense.apis.metadata import Metadata, Resize
from cvt_dense.errors import UserError

SIZES = [(480, 640), (333, 201), (37, 1000), (501, 500), (1, 7), (767, 511), (200, 333)]


@pytest.mark.parametrize(
    'settings',
    [
        dict(scale=(2048, 512), keep_ratio=True),
        dict(scale=(1333, 800), keep_ratio=True),
        dict(scale=(160, 161), keep_ratio=False),
        dict(scale_factor=(0.51, 1.37), keep_ratio=True),
        dict(scale_factor=(0.51, 1.37), interpolation='area'),
        dict(scale=(301, 203), keep_ratio=True, interpolation='bicubic'),
    ],
    ids=str,
)
def test_images_are_resized_to_the_pixels_that_mmcv_makes(settings: dict) -> None:
    renamed = {'factor' if key == 'scale_factor' else key: value for key, value in settings.items()}
    ours, theirs = Resize(**renamed), TheirResize(**settings)
    for height, width in SIZES:
        image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
        expected = theirs(dict(img=image))['img']
        assert ours.size_of(height, width) == expected.shape[:2]
        assert np.array_equal(ours(image), expected)


def test_what_a_file_says_is_what_was_written() -> None:
    for meta in (
        Metadata('features', 'BGR', cannot_prepare='it pads'),
        Metadata(
            'detection', 'RGB', 128, Resize((1333, 800), keep_ratio=True), None, ('a', 'b'), (1, 2), [[1, 2, 3]], 0.3
        ),
        Metadata('segmentation', 'RGB', resize=Resize(factor=(0.5, 2.0)), binary_threshold=0.3, align_corners=True),
    ):
        assert Metadata.from_json(meta.to_json(), 'x.onnx') == meta


@pytest.mark.parametrize(
    ('text', 'line'),
    [
        ('no JSON', "what x.onnx says of itself as 'cvt_dense' cannot be read: export it again"),
        ('{}', "what x.onnx says of itself as 'cvt_dense' cannot be read: export it again"),
        ('{"version": 1}', "what x.onnx says of itself as 'cvt_dense' cannot be read: export it again"),
        ('{"version": 2}', 'x.onnx was exported by a later cvt_dense: update this one, or export it again'),
    ],
)
def test_what_cannot_be_understood_is_one_line(text: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        Metadata.from_json(text, 'x.onnx')
    assert str(error.value) == line


def test_what_a_later_version_adds_within_this_layout_is_ignored() -> None:
    content = json.loads(Metadata('features', 'RGB').to_json()) | dict(author='someone')
    assert Metadata.from_json(json.dumps(content), 'x.onnx') == Metadata('features', 'RGB')
