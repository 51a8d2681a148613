"""Masks as pycocotools reads them: its C code takes any coordinate and run length, then crashes or takes all memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from ..errors import UserError

#: How many times its larger side, of 1000 pixels at least, annotations may stick out of an image. Real ones do so by
#: some pixels, those of tiles that were cut from a large image by some tiles.
FAR = 10
#: Pixels of an outline; pycocotools takes some 100 bytes for each.
LONGEST = 10_000_000
NUMBERS = frozenset((int, float))  # and not bool, which is a kind of int
_AT_ONCE = 100_000  # coordinates or characters, for which a processor's cache has room
_MOST_DIGITS = 7  # of base 32: lengths have 32 bits


def far(height: float, width: float) -> float:
    """The largest coordinate that annotations of an image may have."""
    return FAR * max(height, width, 1000)


def correct(identity: Any) -> str:
    """What to do about an annotation whose mask cannot be read."""
    return f'correct its segmentation, or remove annotation {identity}'


class MaskCheck:
    """Checks the masks of an annotation file, many at a time: NumPy's calls take longer than a mask.

    Args:
        path: The file, for messages.
    """

    def __init__(self, path: object) -> None:
        self.path = path
        self._polygons: list[tuple[Any, Sequence[Any], float]] = []  # annotation's id, coordinates, largest
        self._lengths: list[tuple[Any, str, int]] = []  # annotation's id, run lengths, their sum
        self._waiting = 0

    def add_polygons(self, identity: Any, polygons: Sequence[Sequence[Any]], limit: float) -> None:
        """Check an annotation's polygons, now or with :meth:`finish`.

        Args:
            identity: The annotation's id.
            polygons: Coordinates x, y, x, y, … of each.
            limit: The largest that one may be.

        Raises:
            UserError: If one of those that were added is not fit for pycocotools.
        """
        self._polygons += [(identity, polygon, limit) for polygon in polygons if polygon]
        self._wait(sum(map(len, polygons)))

    def add_lengths(self, identity: Any, counts: Any, area: int) -> None:
        """Check an annotation's run lengths, now or with :meth:`finish`.

        Args:
            identity: The annotation's id.
            counts: A list of lengths, or pycocotools' string of them.
            area: What they have to sum up to.

        Raises:
            UserError: As for polygons.
        """
        if isinstance(counts, str) and counts:
            self._lengths.append((identity, counts, area))
            self._wait(len(counts))
        elif not isinstance(counts, (str, list)):
            self._refuse_lengths(identity, f'are {counts!r:.40}; they have to be a list or a string')
        elif not {int}.issuperset(map(type, counts)) or min(counts, default=0) < 0:
            self._refuse_lengths(identity, 'are not all whole numbers from 0')
        elif sum(counts) != area:
            self._refuse_lengths(identity, _wrong_sum(sum(counts), area))

    def finish(self) -> None:
        """Check what was added and is not checked yet.

        Raises:
            UserError: If something is not fit for pycocotools.
        """
        if self._polygons:
            self._check_polygons()
        if self._lengths:
            self._check_lengths()
        self._polygons, self._lengths, self._waiting = [], [], 0

    def _wait(self, size: int) -> None:
        self._waiting += size
        if self._waiting > _AT_ONCE:
            self.finish()

    def _check_polygons(self) -> None:
        values = list(chain.from_iterable(polygon for _, polygon, _ in self._polygons))
        limits = np.array([limit for *_, limit in self._polygons])
        sizes = np.array([len(polygon) for _, polygon, _ in self._polygons])
        try:
            numbers = np.array(values, np.float64) if NUMBERS.issuperset(map(type, values)) else None
        except OverflowError:  # an integer of hundreds of digits
            numbers = None
        if numbers is None:
            are_near = np.array([_are_near(polygon, limit) for _, polygon, limit in self._polygons])
        else:
            largest = np.maximum.reduceat(np.abs(numbers), sizes.cumsum() - sizes)
            are_near = largest <= limits  # not of NaN
        if not are_near.all():
            identity, polygon, limit = self._polygons[int(are_near.argmin())]
            wrong = next(value for value in polygon if not _are_near([value], limit))
            raise UserError(
                f'{self.path}: annotation {identity} has a polygon with the coordinate {wrong!r:.40}; it has to be a '
                f'number, {limit:g} pixels at most',
                correct(identity),
            )
        for index in np.flatnonzero(sizes * largest > LONGEST):  # no outline is longer than that
            identity, polygon, _ = self._polygons[index]
            points = np.array(polygon[: len(polygon) // 2 * 2]).reshape(-1, 2)
            length = np.abs(np.diff(points, axis=0, append=points[:1])).max(axis=1).sum()
            if length > LONGEST:
                raise UserError(
                    f'{self.path}: annotation {identity} has a polygon whose outline is {length:.3g} pixels long, and '
                    f'pycocotools would take {100 * length:.1g} bytes of memory for it',
                    correct(identity),
                )

    def _check_lengths(self) -> None:
        strings = [counts for _, counts, _ in self._lengths]
        if not all(map(str.isascii, strings)):
            identity = next(identity for identity, counts, _ in self._lengths if not counts.isascii())
            self._refuse_lengths(identity, 'are damaged: they are not what pycocotools encodes')
        are_whole, sums = sums_of_lengths(strings)
        areas = np.array([area for *_, area in self._lengths])
        are_right = are_whole & (sums == areas)
        if not are_right.all():
            index = int(are_right.argmin())
            fault = _wrong_sum(sums[index], areas[index])
            damaged = 'are damaged: they are not what pycocotools encodes'
            self._refuse_lengths(self._lengths[index][0], fault if are_whole[index] else damaged)

    def _refuse_lengths(self, identity: Any, fault: str) -> None:
        what = f'{self.path}: annotation {identity} has a segmentation whose run lengths {fault}'
        raise UserError(what, correct(identity))


def _wrong_sum(total: int, area: int) -> str:
    return f'sum up to {total}, and the image has {area} pixels'


def _are_near(values: Sequence[Any], limit: float) -> bool:
    return NUMBERS.issuperset(map(type, values)) and all(-limit <= value <= limit for value in values)


def sums_of_lengths(strings: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What run lengths sum up to that are encoded as pycocotools does.

    Each length is a number of base 32, least digit first, in characters from "0" whose sixth bit says that more digits
    come and whose fifth, in the last, that it is negative; from the fourth length on, it is the difference to the last
    but one (``rleFrString`` of pycocotools' ``maskApi.c``).

    Args:
        strings: One for each mask, none of them empty; all of ASCII.

    Returns:
        For each whether it is one that pycocotools encodes, and the sum, of no meaning if it is not.
    """
    digits = np.frombuffer(''.join(strings).encode('ascii'), np.uint8) - np.uint8(ord('0'))  # below "0": 208 and more
    sizes = np.array([len(text) for text in strings])
    begins, lasts = sizes.cumsum() - sizes, sizes.cumsum() - 1
    is_end = digits < 32
    is_valid = (np.maximum.reduceat(digits, begins) < 64) & is_end[lasts]
    is_end[lasts] = True  # keep those that break off away from the next
    ends = np.flatnonzero(is_end)
    starts = np.empty_like(ends)
    starts[0], starts[1:] = 0, ends[:-1] + 1
    counts = ends - starts + 1
    first = np.searchsorted(starts, begins)  # of each string's lengths
    is_valid &= np.maximum.reduceat(counts, first) <= _MOST_DIGITS
    lengths = (digits[starts] & 31).astype(np.int64)
    for number in range(1, min(counts.max(), _MOST_DIGITS)):
        longer = np.flatnonzero(counts > number)
        lengths[longer] += (digits[starts[longer] + number] & np.int64(31)) << 5 * number
    negative = np.flatnonzero(digits[ends] & 16)
    lengths[negative] -= np.int64(1) << 5 * np.minimum(counts[negative], _MOST_DIGITS)
    # Differences become lengths in a table of pairs, of which each string begins a row and has an even number.
    numbers = np.diff(first, append=len(starts))
    rows = (numbers + 1) // 2
    tops = rows.cumsum() - rows
    table = np.zeros(2 * rows.sum(), np.int64)
    table[np.arange(len(lengths)) + np.repeat(2 * tops - first, numbers)] = lengths
    pairs = table.reshape(-1, 2)
    firsts = pairs[tops, 0]
    pairs[tops, 0] = 0  # from which no other is counted
    sums = pairs.cumsum(axis=0)
    before = np.zeros((len(tops), 2), np.int64)
    before[1:] = sums[tops[1:] - 1]
    sums -= np.repeat(before, rows, axis=0)
    sums[tops, 0] = firsts
    last = tops + rows - 1
    sums[last[numbers % 2 == 1], 1] = 0  # what fills the row up
    is_valid &= np.minimum.reduceat(sums.min(axis=1), tops) >= 0
    return is_valid, np.add.reduceat(sums.sum(axis=1), tops)
