"""Where labels go: beside what they name, within the picture, off small objects and off each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import cv2
import numpy as np

#: Left, top, right, bottom in pixels; the right and the bottom are beyond the last one.
Rectangle = tuple[int, int, int, int]
Size = tuple[int, int]
Point = tuple[int, int]

#: Pixels of a side up to which places are looked for at each pixel; in larger pictures at each second one, and so on.
FINE = 2048

_SMALL = 4  # times the area of its label: of an object of less, a label would leave little to be seen
_REACH = 6  # heights of a label between it and its object, at most: a longer line between them is hard to follow


def place_labels(
    canvas: Size, boxes: Sequence[Rectangle], sizes: Sequence[Size], margin: int
) -> list[Rectangle | None]:
    """Find a place for each label: at its box or in a corner of it, else the nearest one that is free.

    Free means: on no small object and on no label that was placed before.

    Args:
        canvas: Width and height of the picture.
        boxes: Of the objects; the first ones have the first choice.
        sizes: Width and height of each one's label, at most those of the picture.
        margin: Pixels round a small object that are kept free for the lines round it.

    Returns:
        A rectangle of its size for each label, None if there is no free place near its box.
    """
    cell = -(-max(canvas) // FINE)
    room = _Room((canvas[0] // cell, canvas[1] // cell))
    places = []
    for box, (width, height) in zip(boxes, sizes):
        is_small = is_small_for(box, (width, height))
        grown = _grow(box, margin if is_small else 0)
        places.append((_in_cells(grown, cell), (-(-width // cell), -(-height // cell)), is_small))
    for box, _, is_small in places:
        if is_small:
            room.take(box)
    placed: list[Rectangle | None] = []
    for (box, size, is_small), (width, height) in zip(places, sizes):
        found = room.find(box, size, within=not is_small)
        placed.append(None)
        if found:
            x, y = found
            room.take((x, y, x + size[0], y + size[1]))
            placed[-1] = x * cell, y * cell, x * cell + width, y * cell + height
    return placed


def is_small_for(box: Rectangle, size: Size) -> bool:
    """Whether little of an object would be seen below a label of this size."""
    return (box[2] - box[0]) * (box[3] - box[1]) < _SMALL * size[0] * size[1]


def nearest_points(one: Rectangle, other: Rectangle) -> tuple[Point, Point]:
    """The points of two rectangles that are nearest to each other, halfway along where they lie side by side."""
    pairs = [_nearest(one[i], one[i + 2] - 1, other[i], other[i + 2] - 1) for i in (0, 1)]
    (x, other_x), (y, other_y) = pairs
    return (x, y), (other_x, other_y)


def _nearest(start: int, end: int, other_start: int, other_end: int) -> tuple[int, int]:
    if end < other_start:
        return end, other_start
    if other_end < start:
        return start, other_end
    middle = (max(start, other_start) + min(end, other_end)) // 2
    return middle, middle


def _grow(box: Rectangle, margin: int) -> Rectangle:
    return box[0] - margin, box[1] - margin, box[2] + margin, box[3] + margin


def _in_cells(box: Rectangle, cell: int) -> Rectangle:
    return box[0] // cell, box[1] // cell, -(-box[2] // cell), -(-box[3] // cell)


class _Room:
    """What of a picture is taken, and what is free."""

    def __init__(self, canvas: Size) -> None:
        self._width, self._height = canvas
        self._taken = np.zeros((self._height, self._width), np.uint8)

    def take(self, rectangle: Rectangle) -> None:
        """Keep later labels off a rectangle."""
        x1, y1, x2, y2 = (max(0, side) for side in rectangle)
        self._taken[y1:y2, x1:x2] = 1

    def find(self, box: Rectangle, size: Size, within: bool) -> Point | None:
        """The left and top of a free place for a label, which may lie within its box or not."""
        width, height = (min(side, limit) for side, limit in zip(size, (self._width, self._height)))
        for x, y in self._usual(box, (width, height), within):
            if not self._taken[y : y + height, x : x + width].any():
                return x, y
        return self._nearest(box, (width, height), _REACH * height)

    def _usual(self, box: Rectangle, size: Size, within: bool) -> Iterator[Point]:
        """Places that touch the box or lie in a corner of it, the best ones first."""
        (x1, y1, x2, y2), (width, height) = box, size
        rightmost, lowest = self._width - width, self._height - height
        for y in (y1 - height, y1, y2, y2 - height) if within else (y1 - height, y2):
            for x in (x1, x2 - width):
                if 0 <= y <= lowest:
                    yield min(max(x, 0), rightmost), y
        for x in (x2, x1 - width):
            if 0 <= x <= rightmost:
                yield x, min(max(y1, 0), lowest)

    def _nearest(self, box: Rectangle, size: Size, reach: int) -> Point | None:
        """The free place that is nearest to a box, out of those within reach of it."""
        width, height = size
        left, right = _span(box[0] - reach - width, box[2] + reach + width, width, self._width)
        top, bottom = _span(box[1] - reach - height, box[3] + reach + height, height, self._height)
        sums = cv2.integral(self._taken[top:bottom, left:right])
        covered = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
        rows, columns = np.nonzero(covered == 0)
        xs, ys = columns + left, rows + top
        aside = np.maximum(np.maximum(box[0] - xs - width, xs - box[2]), 0)
        apart = np.maximum(np.maximum(box[1] - ys - height, ys - box[3]), 0)
        distance = np.hypot(aside, apart)
        if not len(distance) or distance.min() > reach:
            return None
        off_centre = np.abs(2 * xs + width - box[0] - box[2]) + np.abs(2 * ys + height - box[1] - box[3])
        best = np.lexsort((off_centre, distance))[0]  # of those that are equally far, in the middle of a side
        return int(xs[best]), int(ys[best])


def _span(start: int, end: int, least: int, limit: int) -> tuple[int, int]:
    """A range within 0 to a limit that is at least so long."""
    start = min(max(start, 0), limit - least)
    return start, max(min(end, limit), start + least)
