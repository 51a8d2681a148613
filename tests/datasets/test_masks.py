from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as run_length

from cvt_dense.datasets.masks import FAR, LONGEST, MaskCheck, far, sums_of_lengths
from cvt_dense.errors import UserError

SIDE = 64
AREA = SIDE * SIDE
SQUARE = [1, 1, 9, 1, 9, 9.5, 1, 9]


def encoded(mask: np.ndarray) -> str:
    return run_length.encode(np.asfortranarray(mask.astype(np.uint8)))['counts'].decode()


def masks() -> list[np.ndarray]:
    """Of all densities, with runs of one pixel and of thousands, beginning with either value."""
    random = np.random.default_rng(0)
    found = [random.random(tuple(random.integers(1, 90, 2))) < random.random() for _ in range(60)]
    stripes = np.zeros((3000, 300), bool)
    stripes[:, 7::50] = True
    return [*found, stripes, np.zeros((5, 4), bool), np.ones((4, 5), bool), np.ones((1, 1), bool)]


def test_what_pycocotools_encodes_sums_up_to_the_image() -> None:
    every = masks()
    are_valid, sums = sums_of_lengths([encoded(mask) for mask in every])
    assert are_valid.all()
    assert sums.tolist() == [mask.size for mask in every]
    for mask in every:
        assert sums_of_lengths([encoded(mask)])[1].tolist() == [mask.size], 'alone as among others'


def test_lengths_are_those_that_pycocotools_decodes() -> None:
    """A mask is valid for the size that its lengths sum up to, and for no other: pycocotools' own judge."""
    for mask in masks()[:20]:
        text = encoded(mask)
        for size in (mask.size, mask.size - 1):
            rle = dict(size=[size, 1], counts=text)
            if sums_of_lengths([text])[1][0] == size:
                assert run_length.decode(rle).sum() == mask.sum()
            else:
                with pytest.raises(ValueError, match='Invalid RLE'):
                    run_length.decode(rle)


#: Strings that are no run lengths, some of which pycocotools reads beyond their end.
DAMAGED = {
    'breaks off': 'PPPP',
    'breaks off later': '0h',
    'below the alphabet': "b'0'",
    'above the alphabet': '0~0',
    'of more bits than there are': 'oooooooooooo0',
    'negative': 'O',
    'negative difference': encoded(np.eye(SIDE)) + 'O' * 9,
    'not of ASCII': 'é',
    'control characters': '\n',
}


@pytest.mark.parametrize('case', DAMAGED)
@pytest.mark.parametrize('after', [0, 1])
def test_strings_that_are_no_run_lengths_are_refused(case: str, after: int) -> None:
    check = MaskCheck('a.json')
    good = encoded(np.eye(SIDE))
    for identity in range(after):
        check.add_lengths(identity, good, AREA)
    check.add_lengths('bad', DAMAGED[case], AREA)
    check.add_lengths('good', good, AREA)
    with pytest.raises(UserError, match=r'^a.json: annotation bad has a segmentation whose run lengths are damaged'):
        check.finish()


LENGTHS: dict[str, tuple[Any, str]] = {
    'too few': ([10, 20], 'sum up to 30, and the image has 4096 pixels'),
    'too many': ([AREA, 1], 'sum up to 4097'),
    'none': ([], 'sum up to 0'),
    'negative': ([-1, AREA + 1], 'not all whole numbers from 0'),
    'fractions': ([1.5, AREA - 1.5], 'not all whole numbers'),
    'words': ([str(AREA)], 'not all whole numbers'),
    'truth': ([True, AREA - 1], 'not all whole numbers'),
    'null': (None, 'are None; they have to be a list or a string'),
    'bytes': (encoded(np.eye(SIDE)).encode(), 'they have to be a list or a string'),
    'a dict': ({}, 'they have to be a list or a string'),
    'empty': ('', 'sum up to 0'),
    'of another image': (encoded(np.eye(SIDE - 1)), 'sum up to 3969, and the image has 4096 pixels'),
}


@pytest.mark.parametrize('case', LENGTHS)
def test_run_lengths_of_another_size_or_kind_are_refused(case: str) -> None:
    counts, told = LENGTHS[case]
    check = MaskCheck('a.json')
    with pytest.raises(UserError, match=told):  # noqa: PT012  either of the two
        check.add_lengths(7, counts, AREA)
        check.finish()


def test_run_lengths_that_are_right() -> None:
    check = MaskCheck('a.json')
    for counts in ([AREA], [0, AREA], [1, 2, AREA - 3], encoded(np.eye(SIDE)), encoded(np.ones((SIDE, SIDE)))):
        check.add_lengths(1, counts, AREA)
    check.finish()


WRONG: dict[str, Any] = {
    'NaN': float('nan'),
    'infinite': -float('inf'),
    'far': FAR * 1000 + 1,
    'huge': 10**400,
    'a word': '1',
    'truth': True,
    'null': None,
    'a point': [1, 2],
}


@pytest.mark.parametrize('case', WRONG)
@pytest.mark.parametrize('place', [0, -1])
def test_coordinates_that_pycocotools_would_take_are_refused(case: str, place: int) -> None:
    check, polygon = MaskCheck('a.json'), list(SQUARE)
    polygon[place] = WRONG[case]
    check.add_polygons('good', [SQUARE, []], far(SIDE, SIDE))
    check.add_polygons('bad', [SQUARE, polygon], far(SIDE, SIDE))
    check.add_polygons('good', [SQUARE], far(SIDE, SIDE))
    with pytest.raises(UserError) as error:
        check.finish()
    assert str(error.value).startswith('a.json: annotation bad has a polygon with the coordinate ')
    assert f'{WRONG[case]!r:.40}; it has to be a number, 10000 pixels at most' in str(error.value)


def test_polygons_may_stick_out_of_their_image() -> None:
    """As those of tiles that were cut from a large image do."""
    check = MaskCheck('a.json')
    check.add_polygons(1, [[-9000, 5, 9000, 5, 70, 10000]], far(SIDE, SIDE))
    check.add_polygons(2, [[0, 0, 90_000, 0, 90_000, 90_000.5, 7]], far(9000, 10_000))
    check.finish()


def test_an_outline_that_would_take_all_memory_is_refused() -> None:
    """Each coordinate may be, and the way back and forth between them takes gigabytes."""
    check = MaskCheck('a.json')
    check.add_polygons('long', [SQUARE, [0, 0, 9000, 9000] * (LONGEST // 18_000 + 1)], far(SIDE, SIDE))
    with pytest.raises(UserError, match=r'annotation long has a polygon whose outline is 1e\+07 pixels long'):
        check.finish()
    check = MaskCheck('a.json')
    check.add_polygons('of many points', [[9000, 9000, 9000, 9001] * 10_000], far(SIDE, SIDE))
    check.finish()


def test_what_is_waiting_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    check, calls = MaskCheck('a.json'), []
    monkeypatch.setattr(MaskCheck, 'finish', lambda self: calls.append(self._waiting) or setattr(self, '_waiting', 0))
    for _ in range(30_000):
        check.add_polygons(1, [SQUARE], far(SIDE, SIDE))
    assert len(calls) == 2
