from __future__ import annotations

import numpy as np
import pytest

from cvt_dense.visualization.overlays import draw_heat, draw_point, fitted


def test_heat_is_brighter_where_numbers_are_larger_and_grey_where_they_are_0() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    heat = np.zeros((2, 3))
    heat[0, 1:] = 0.5, 1
    drawn = draw_heat(image, heat)
    parts = [drawn[:20, 20 * column : 20 * column + 20].astype(int) for column in range(3)]
    assert [part.mean() for part in parts] == sorted(part.mean() for part in parts)
    assert np.ptp(drawn[20:], axis=2).max() == 0
    assert np.ptp(parts[0], axis=2).max() == 0
    assert parts[2].std() < parts[0].std(), 'where numbers are large, little is left of the image'


@pytest.mark.parametrize('size', [(40, 60), (900, 1200)])
def test_a_point_is_circled_in_a_copy(size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 128, np.uint8)
    drawn = draw_point(image, (30, 20))
    changed = np.argwhere((drawn != image).any(2))
    assert np.abs(changed.mean(0) - (20, 30)).max() <= 1
    assert (image == 128).all()
    assert draw_point(image, (0, 0)).shape == image.shape


def test_images_are_reduced_and_never_enlarged() -> None:
    assert fitted(np.zeros((300, 400, 3), np.uint8), 100).shape == (75, 100, 3)
    assert fitted(np.zeros((3, 4000, 3), np.uint8), 100).shape == (1, 100, 3)
    assert fitted(np.zeros((30, 40, 3), np.uint8), 100).shape == (30, 40, 3)
