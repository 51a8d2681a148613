"""Where the windows of a token map lie."""

# No annotations from __future__ here: torch.jit reads the fields of named tuples as they are.

from typing import NamedTuple

from .tokens import Size


class WindowLayout(NamedTuple):
    """What attention within windows has to know of its tokens.

    Attributes:
        size: ``(H, W)``, of the queries' map.
        kv_stride: Stride of the keys relative to the queries; their map is ``(ceil(H / stride), ceil(W / stride))``.
        window_size: Side of a window, in queries; rounded up to the stride of the keys.
        num_prefix: Tokens in front of the maps' tokens: 1 for a cls token, else 0.
    """

    size: Size
    kv_stride: int
    window_size: int
    num_prefix: int


def key_map_size(size: Size, kv_stride: int) -> Size:
    """Of the keys' map, ``(Hk, Wk)``, for that of the queries and the stride between them."""
    return -(-size[0] // kv_stride), -(-size[1] // kv_stride)


def cut(length: int, window_size: int, kv_stride: int) -> list[tuple[int, int, int]]:
    """Cut one axis of a map into windows.

    Args:
        length: Of the axis, in queries.
        window_size: The most queries that a window should have.
        kv_stride: Queries per key.

    Returns:
        Runs of windows of one length: how many windows, and queries and keys of each. A run has as many windows as
        possible; there are three at most, since lengths differ by one key and the map may end within a key's stride.
    """
    keys = -(-length // kv_stride)
    keys_per_window = -(-window_size // kv_stride)
    count = -(-keys // keys_per_window)
    short, num_long = keys // count, keys % count
    missing = keys * kv_stride - length
    num_incomplete = 1 if missing > 0 else 0
    runs: list[tuple[int, int, int]] = []
    for run in (
        (num_long, (short + 1) * kv_stride, short + 1),
        (count - num_long - num_incomplete, short * kv_stride, short),
        (num_incomplete, short * kv_stride - missing, short),
    ):
        if run[0] > 0:  # not a comprehension: torch.jit takes none with a condition
            runs.append(run)
    return runs
