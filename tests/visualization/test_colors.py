"""Colours are compared by CIEDE2000: the eye just notices a difference of 2."""

from __future__ import annotations

import importlib
from itertools import combinations, islice

import numpy as np
import pytest

from cvt_dense.visualization import colors
from cvt_dense.visualization.colors import (
    DARK,
    GREY,
    SAME,
    WHITE,
    Color,
    differences,
    far_from,
    letters_on,
    lightness,
    repaired,
    rim_of,
)

#: What pictures are made of: tissue in haematoxylin and eosin, blood, foliage, sky, asphalt, skin, soil.
GROUNDS = [(230, 160, 190), (110, 60, 140), (225, 150, 150), (80, 110, 50), (150, 190, 230), (120, 120, 125)]
GROUNDS += [(200, 150, 120), (120, 85, 60)]
RANDOM = [tuple(color) for color in np.random.default_rng(0).integers(0, 256, (200, 3)).tolist()]


def nearest(chosen: list[Color]) -> float:
    """The least difference of any two."""
    return min(float(differences(color, chosen[:i]).min()) for i, color in enumerate(chosen) if i)


def test_the_difference_of_colours_is_ciede2000() -> None:
    reference = pytest.importorskip('skimage.color')
    lab = reference.rgb2lab(np.array(RANDOM)[None] / 255)[0]
    np.testing.assert_allclose(colors._lab(RANDOM), lab, atol=0.5)
    expected = reference.deltaE_ciede2000(lab[:, None], lab[None])
    np.testing.assert_allclose(colors._ciede2000(lab[:, None], lab[None]), expected, atol=1e-9)
    assert differences((0, 0, 0), [WHITE]) == pytest.approx([100], abs=0.1)
    assert differences(GREY, [GREY, (161, 160, 160)]).tolist() == pytest.approx([0, 0.4], abs=0.3)


#: How many colours there are, and what any two of them differ by at least.
DIFFERENT = [(2, 25), (3, 25), (5, 25), (11, 18), (20, 14), (40, 11), (80, 8), (150, 7)]


@pytest.mark.parametrize(('count', 'least'), DIFFERENT)
def test_colours_differ_from_each_other(count: int, least: float) -> None:
    assert nearest(list(islice(far_from([]), count))) >= least


def test_a_few_colours_differ_from_what_pictures_are_made_of_and_from_what_is_no_class() -> None:
    for color in islice(far_from([]), 12):
        assert differences(color, [*GROUNDS, DARK, GREY, WHITE]).min() > 15


def test_colours_are_the_same_ones_each_time_and_never_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(islice(far_from([]), 10)) == list(islice(far_from([]), 30))[:10]
    monkeypatch.setattr(colors, '_STEP', 51)
    number = len(colors._candidates())
    many = list(islice(far_from([]), 3 * number))
    assert len(set(many[:number])) == len(set(many)) == number


def test_of_a_palette_that_is_told_apart_nothing_changes() -> None:
    for palette in ([], [(255, 0, 0)], [(255, 0, 0), (119, 11, 32), (0, 0, 142)]):
        assert repaired(palette) == palette


@pytest.mark.parametrize('count', [2, 3, 11, 40, 150])
def test_what_looks_like_an_earlier_colour_is_replaced_and_nothing_else(count: int) -> None:
    generator = np.random.default_rng(count)
    palette = [tuple(color) for color in generator.integers(0, 256, (count, 3)).tolist()]
    for i in generator.choice(np.arange(1, count), count // 2, replace=False):
        palette[i] = palette[generator.integers(i)]
    result = repaired(palette)
    assert len(result) == count
    assert nearest(result) >= SAME
    kept: list[Color] = []
    for before, after in zip(palette, result):
        if not kept or differences(before, kept).min() >= SAME:
            assert after == before
            kept.append(before)
        else:
            assert after not in palette


@pytest.mark.parametrize(
    ('toolkit', 'dataset', 'replaced'),
    [
        ('mmdet', 'CocoDataset', 1),
        ('mmdet', 'VOCDataset', 1),
        ('mmseg', 'ADE20KDataset', 97),
        ('mmseg', 'CityscapesDataset', 0),
    ],
)
def test_well_known_palettes_are_told_apart(toolkit: str, dataset: str, replaced: int) -> None:
    palette = getattr(importlib.import_module(f'{toolkit}.datasets'), dataset).METAINFO['palette']
    result = repaired([tuple(color) for color in palette])
    assert nearest(result) >= SAME
    assert sum(tuple(before) != after for before, after in zip(palette, result)) == replaced


def test_a_line_or_its_rim_stands_out_from_any_ground() -> None:
    for color in [*RANDOM, *islice(far_from([]), 20)]:
        for ground in [*GROUNDS, *RANDOM[:20], color, (0, 0, 0), WHITE]:
            contrasts = [abs(lightness(ground) - lightness(shade)) for shade in (color, rim_of(color))]
            assert max(contrasts) > 20, (color, ground)


def test_letters_are_read_on_any_colour() -> None:
    for color in RANDOM:
        assert abs(lightness(color) - lightness(letters_on(color))) > 44


def test_colours_of_no_class_are_told_apart() -> None:
    for one, other in combinations((DARK, GREY, WHITE), 2):
        assert differences(one, [other])[0] > 20
