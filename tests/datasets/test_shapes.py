"""The scenes of the shapes data set: what they promise, and that they stay as they are."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import PIL
import pytest

from cvt_dense.datasets import shapes
from cvt_dense.errors import UserError

SIZE = 64


@pytest.mark.parametrize('size', [32, 64, 160])
def test_scene_keeps_its_promises(size: int) -> None:
    for index in range(25):
        scene = shapes.scene_at(1, 'train', index, size)
        count = len(scene.labels)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.masks.shape == (count, size, size)
        assert scene.masks.dtype == bool
        assert shapes.MIN_OBJECTS <= count <= shapes.MAX_OBJECTS
        assert scene.labels.min() >= 1
        assert scene.labels.max() <= len(shapes.CLASSES)
        assert scene.masks.sum(axis=0).max() == 1, 'no pixel belongs to two objects'
        visible = scene.masks.sum(axis=(1, 2))
        assert (visible >= shapes.MIN_PIXELS).all()
        assert (visible >= shapes.MIN_PIXEL_SHARE * size**2).all()
        assert (visible <= scene.full_areas).all()
        assert (visible >= shapes.MIN_VISIBLE * scene.full_areas).all()


def test_scenes_have_occlusion_cuts_and_every_class() -> None:
    scenes = [shapes.scene_at(2, 'train', index, SIZE) for index in range(60)]
    assert any((scene.masks.sum(axis=(1, 2)) < scene.full_areas).any() for scene in scenes)
    assert any(scene.masks[:, 0].any() or scene.masks[:, :, 0].any() for scene in scenes)
    counts = np.bincount(np.concatenate([scene.labels for scene in scenes]), minlength=6)
    assert counts[0] == 0
    assert counts[1:].min() > 0.5 * counts[1:].mean()


def test_full_area_is_the_area_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is the mask of each object as it was put there, before anything came over it."""
    fresh: list[int] = []
    put_object = shapes._put_object

    def watch(canvas: Any, masks: Any, *others: Any) -> bool:
        done = put_object(canvas, masks, *others)
        if done:
            fresh.append(int(masks[-1].sum()))
        return done

    monkeypatch.setattr(shapes, '_put_object', watch)
    scene = shapes.scene_at(3, 'train', 0, SIZE)
    assert scene.full_areas.tolist() == fresh


def test_object_on_top_hides_what_is_beneath() -> None:
    beneath = [np.ones((20, 20), bool)]
    top = np.ones((20, 20), bool)
    top[:, :6] = False  # leaves exactly 30%
    assert shapes._leaves_visible(top, beneath, [400])
    top[0, 0] = True
    assert not shapes._leaves_visible(top, beneath, [400])
    assert not shapes._leaves_visible(np.ones((20, 20), bool), beneath, [400])


@pytest.mark.parametrize('name', shapes.CLASSES)
def test_outline_is_drawn_where_it_is(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(10):
        outline = shapes._outline(name, rng)
        assert all(np.linalg.norm(points, axis=1).max() <= 1 + 1e-9 for points in outline)
        placed = [30 * points + 50 for points in outline]
        area = shapes._area(placed[0]) - sum(shapes._area(hole) for hole in placed[1:])
        coverage = shapes._coverage(placed, 100)
        assert coverage.sum() == pytest.approx(area, rel=0.06)
        rows, cols = np.mgrid[:100, :100] + 0.5
        middle = (coverage * cols).sum() / coverage.sum(), (coverage * rows).sum() / coverage.sum()
        if name != 'triangle':  # all others are symmetric about their centre
            assert middle == pytest.approx((50, 50), abs=0.2)


def test_outlines_of_the_classes_differ() -> None:
    """The covered share of the circumscribed circle, and whether its centre is covered."""
    rng = np.random.default_rng(0)
    share, centre = {}, {}
    for name in shapes.CLASSES:
        drawn = [shapes._coverage([40 * points + 50 for points in shapes._outline(name, rng)], 100) for _ in range(30)]
        share[name] = [coverage.sum() / (np.pi * 40**2) for coverage in drawn]
        centre[name] = {float(coverage[50, 50]) for coverage in drawn}
    assert min(share['ellipse']) > max(share['rectangle']) - 0.02
    assert min(share['rectangle']) > max(share['triangle'])
    assert centre['ring'] == {0.0}
    assert all(centre[name] == {1.0} for name in shapes.CLASSES if name != 'ring')


def test_unknown_class_is_an_error() -> None:
    with pytest.raises(ValueError, match='unknown class'):
        shapes._outline('hexagon', np.random.default_rng(0))


def test_object_like_its_ground_does_not_stand_out() -> None:
    mask = np.ones((10, 10), bool)
    grey, near, far = (np.full((10, 10, 3), value) for value in (0.5, 0.52, 0.9))
    assert not shapes._stands_out(near, grey, mask)
    assert shapes._stands_out(far, grey, mask)
    assert not shapes._stands_out(far, grey, ~mask)


@pytest.mark.parametrize(
    ('seed', 'size', 'words'),
    [(0, 31, 'size must be at least 32'), (-1, 64, 'seed must be between 0'), (2**32, 64, 'seed must be between 0')],
)
def test_scene_of_bad_values_is_an_error(seed: int, size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        shapes.scene_at(seed, 'train', 0, size)


@pytest.mark.skipif(
    tuple(map(int, PIL.__version__.split('.')[:2])) < (11, 3), reason='older Pillow draws polygons in another way'
)
@pytest.mark.parametrize(
    ('seed', 'split', 'size', 'digest'),
    [
        (100, 'train', 160, '9836a6db53eba6d399199ba35e883e036bf5ee636ecac98b35dce3153714da8c'),
        (100, 'val', 160, '8c1bcd9aab2bf057d713b9db02266493554ca36ac1171cef46d511b3f76c4c42'),
        (5, 'train', 33, '1173ca65f70864585a7327f5b33b9ca8be9e176b1dda910319b21d65fd6962f1'),
    ],
)
def test_scenes_are_those_that_the_shipped_backbone_was_trained_on(
    seed: int, split: str, size: int, digest: str
) -> None:
    """Its data set was that of seed 100 (docs/demo.md)."""
    content = hashlib.sha256()
    for index in range(4):
        scene = shapes.scene_at(seed, split, index, size)
        for array in (scene.image, scene.masks, scene.labels, scene.full_areas, scene.label_map()):
            content.update(array.tobytes())
    assert content.hexdigest() == digest
