from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest

from cvt_dense.visualization import placement
from cvt_dense.visualization.placement import Rectangle, is_small_for, nearest_points, place_labels

MARGIN = 3


def layout(seed: int, count: int, canvas: tuple[int, int]) -> tuple[list[Rectangle], list[tuple[int, int]]]:
    """Boxes of all sizes, some beyond the border, and the sizes of their labels."""
    generator = np.random.default_rng(seed)
    corners = generator.uniform(-10, canvas, (count, 2))
    sides = np.exp(generator.uniform(np.log(2), np.log(150), (count, 2)))
    boxes = [tuple(box) for box in np.hstack([corners, corners + sides]).round().astype(int).tolist()]
    return boxes, [(int(width), 19) for width in generator.integers(30, 110, count)]


def overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def gap(one: Rectangle, other: Rectangle) -> float:
    beside = [max(other[i] - one[i + 2], one[i] - other[i + 2], 0) for i in (0, 1)]
    return math.hypot(*beside)


@pytest.mark.parametrize('count', [1, 5, 25, 120])
@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('canvas', [(480, 480), (640, 360), (120, 500)])
def test_labels_are_in_the_picture_near_their_objects_off_small_ones_and_off_each_other(
    canvas: tuple[int, int], seed: int, count: int
) -> None:
    boxes, sizes = layout(seed, count, canvas)
    places = place_labels(canvas, boxes, sizes, MARGIN)
    found = [place for place in places if place]
    for place, size in zip(places, sizes):
        assert place is None or (place[2] - place[0], place[3] - place[1]) == size
    for x1, y1, x2, y2 in found:
        assert 0 <= x1 < x2 <= canvas[0]
        assert 0 <= y1 < y2 <= canvas[1]
    for one, other in combinations(found, 2):
        assert not overlap(one, other)
    for box, size in zip(boxes, sizes):
        if is_small_for(box, size):
            assert not any(overlap(box, place) for place in found)
    for box, place, (_, height) in zip(boxes, places, sizes):
        assert place is None or gap(box, place) <= 6 * height + 2 * MARGIN
    if count <= 5:
        assert None not in places, 'there is room for a few'


@pytest.mark.parametrize('seed', range(2))
def test_a_label_is_left_out_only_where_there_is_no_room_for_it(seed: int) -> None:
    canvas = (150, 120)
    boxes, sizes = layout(seed, 25, canvas)
    places = place_labels(canvas, boxes, sizes, MARGIN)
    assert None in places
    small = [
        (x1 - MARGIN, y1 - MARGIN, x2 + MARGIN, y2 + MARGIN)
        for (x1, y1, x2, y2), size in zip(boxes, sizes)
        if is_small_for((x1, y1, x2, y2), size)
    ]
    for i, (place, (width, height)) in enumerate(zip(places, sizes)):
        if place is None:
            taken = np.zeros(canvas[::-1], bool)
            for x1, y1, x2, y2 in [*small, *filter(None, places[:i])]:
                taken[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = True
            for y in range(canvas[1] - height + 1):
                for x in range(canvas[0] - width + 1):
                    is_free = not taken[y : y + height, x : x + width].any()
                    assert not is_free or gap((x, y, x + width, y + height), boxes[i]) > 6 * height


def test_an_object_that_is_large_may_have_its_label_within() -> None:
    assert place_labels((300, 200), [(0, 0, 300, 200)], [(80, 19)], MARGIN) == [(0, 0, 80, 19)]


@pytest.mark.parametrize(
    ('box', 'expected'),
    [
        ((100, 100, 110, 110), (97, 78, 177, 97)),  # above
        ((100, 10, 110, 20), (97, 23, 177, 42)),  # below, as there is no room above
        ((295, 100, 300, 105), (220, 78, 300, 97)),  # shifted to the left
        ((0, 0, 300, 5), (0, 8, 80, 27)),
    ],
)
def test_the_label_of_a_small_object_touches_the_lines_round_it(box: Rectangle, expected: Rectangle) -> None:
    assert place_labels((300, 200), [box], [(80, 19)], MARGIN) == [expected]


def test_the_first_ones_have_the_first_choice() -> None:
    boxes, sizes = layout(0, 30, (480, 480))
    alone = place_labels((480, 480), boxes[:1], sizes[:1], MARGIN)
    assert place_labels((480, 480), [boxes[0]] * 5, [sizes[0]] * 5, MARGIN)[:1] == alone


def test_labels_that_fill_a_picture_are_placed_once() -> None:
    assert place_labels((80, 19), [(0, 0, 80, 19)] * 2, [(80, 19)] * 2, MARGIN) == [None, None]
    assert place_labels((80, 100), [(0, 0, 80, 100)] * 7, [(80, 19)] * 7, MARGIN).count(None) == 2


def test_in_large_pictures_places_are_looked_for_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, 'FINE', 100)
    for seed in range(5):
        canvas = (333, 250)
        boxes, sizes = layout(seed, 12, canvas)
        places = place_labels(canvas, boxes, sizes, MARGIN)
        found = [place for place in places if place]
        assert len(found) > 6
        for place, (width, height) in zip(places, sizes):
            assert place is None or (place[2] - place[0], place[3] - place[1]) == (width, height)
        assert not any(overlap(one, other) for one, other in combinations(found, 2))
        for box, size in zip(boxes, sizes):
            assert not is_small_for(box, size) or not any(overlap(box, place) for place in found)
        assert all(0 <= x1 < x2 <= 333 and 0 <= y1 < y2 <= 250 for x1, y1, x2, y2 in found)


@pytest.mark.parametrize(
    ('other', 'expected'),
    [
        ((20, 0, 30, 10), ((9, 4), (20, 4))),
        ((0, 20, 4, 30), ((1, 9), (1, 20))),
        ((20, 30, 40, 40), ((9, 9), (20, 30))),
        ((-20, -30, -10, -20), ((0, 0), (-11, -21))),
        ((2, 2, 5, 5), ((3, 3), (3, 3))),
    ],
)
def test_a_line_to_a_label_is_as_short_as_possible(other: Rectangle, expected: tuple) -> None:
    assert nearest_points((0, 0, 10, 10), other) == expected
