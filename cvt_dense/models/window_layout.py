"""Where the windows of a token map lie."""

# No annotations from __future__ here: torch.jit reads the fields of named tuples as they are.

from typing import NamedTuple

import torch

from .tokens import Size


class WindowLayout(NamedTuple):
    """What attention within windows has to know of its tokens.

    Attributes:
        size: ``(H, W)``, of the queries' map.
        kv_stride: Stride of the keys relative to the queries; their map is as :func:`key_map_size` says.
        window_size: Side of a window, in queries; rounded up to the stride of the keys.
        num_prefix: Tokens in front of the maps' tokens: 1 for a cls token, else 0.
        partial_keys: Whether less than a stride, which may be left at the end of an axis, has a key of its own. If
            not, the last window has these queries too.
    """

    size: Size
    kv_stride: int
    window_size: int
    num_prefix: int
    partial_keys: bool = True


def key_map_size(size: Size, kv_stride: int, partial_keys: bool = True) -> Size:
    """Of the keys' map, ``(Hk, Wk)``.

    Args:
        size: ``(H, W)``, of the queries' map.
        kv_stride: The stride between them.
        partial_keys: As :class:`WindowLayout` has it: whether sides are rounded up, as by a convolution with padding,
            or down, as by one without.
    """
    return _num_keys(size[0], kv_stride, partial_keys), _num_keys(size[1], kv_stride, partial_keys)


def _num_keys(length: int, kv_stride: int, partial_keys: bool) -> int:
    # Not -(-a // b): ONNX divides towards zero.
    return (length + kv_stride - 1) // kv_stride if partial_keys else length // kv_stride


def cut(length: int, window_size: int, kv_stride: int, partial_keys: bool = True) -> list[tuple[int, int, int]]:
    """Cut one axis of a map into windows.

    Args:
        length: Of the axis, in queries.
        window_size: The most queries that a window should have.
        kv_stride: Queries per key.
        partial_keys: As :class:`WindowLayout` has it.

    Returns:
        Runs of windows of one length: how many windows, and queries and keys of each. A run has as many windows as
        possible; there are three at most, since lengths differ by one key and the map may not end with a stride.
    """
    keys = _num_keys(length, kv_stride, partial_keys)
    keys_per_window = -(-window_size // kv_stride)
    count = -(-keys // keys_per_window)
    short, num_long = keys // count, keys % count
    missing = keys * kv_stride - length  # negative for queries that are left over
    num_uneven = 0 if missing == 0 else 1
    runs: list[tuple[int, int, int]] = []
    for run in (
        (num_long, (short + 1) * kv_stride, short + 1),
        (count - num_long - num_uneven, short * kv_stride, short),
        (num_uneven, short * kv_stride - missing, short),
    ):
        if run[0] > 0:  # not a comprehension: torch.jit takes none with a condition
            runs.append(run)
    return runs


class Places(NamedTuple):
    """Where the tokens of an axis are within their windows, as :func:`cut` cuts it: ``(L,)`` integers each.

    Attributes:
        queries: Place of each query in its window.
        query_lengths: Queries of that window.
        keys: Place of each key in its window.
        key_lengths: Keys of that window.
    """

    queries: torch.Tensor
    query_lengths: torch.Tensor
    keys: torch.Tensor
    key_lengths: torch.Tensor


def places_in_windows(
    length: int, window_size: int, kv_stride: int, partial_keys: bool, device: torch.device
) -> Places:
    """Find where each token of an axis is within its window, in operators that any graph can hold.

    Args:
        length: As :func:`cut` takes it, and the others.
        window_size: Likewise.
        kv_stride: Likewise.
        partial_keys: Likewise.
        device: Of what is returned.
    """
    num_keys = _num_keys(length, kv_stride, partial_keys)
    keys_per_window = -(-window_size // kv_stride)
    count = (num_keys + keys_per_window - 1) // keys_per_window
    short, num_long = num_keys // count, num_keys % count
    key = torch.arange(num_keys, device=device)
    window = torch.maximum(key // (short + 1), (key - num_long) // short)
    first = window * short + window.clamp(max=num_long)
    key_lengths = short + (window < num_long).long()
    query = torch.arange(length, device=device)
    of_query = (query // kv_stride).clamp(max=num_keys - 1)
    left_over = (window == count - 1).long() * (length - num_keys * kv_stride)
    query_lengths = key_lengths * kv_stride + left_over
    return Places(query - (first * kv_stride)[of_query], query_lengths[of_query], key - first, key_lengths)
