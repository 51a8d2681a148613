"""Attention within windows for graphs that leave this process: ONNX, torch.export, traces.

Such a graph has to hold the windows, in plain operators, for whatever size comes. So here all windows are as large as
the largest: the others get one row or column of keys more, which is masked.
"""

from __future__ import annotations

import torch

from .attention import attend
from .window_layout import WindowLayout, key_map_size


def attend_in_padded_windows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    layout: WindowLayout,
) -> torch.Tensor:
    """:func:`cvt_dense.models.windows.attend_in_windows`, in operators that any format has."""
    size, _, _, num_prefix, _ = layout
    rows = _PaddedCut(size[0], layout, query.device)
    columns = _PaddedCut(size[1], layout, query.device)
    images, num_windows = query.shape[0], rows.count * columns.count

    def cut_queries(x: torch.Tensor) -> torch.Tensor:
        x = _pick(x[:, num_prefix:].unflatten(1, size), rows.queries, columns.queries)
        x = x.reshape(images, rows.count, rows.span, columns.count, columns.span, -1)
        return x.transpose(2, 3).reshape(images * num_windows, rows.span * columns.span, -1)

    def cut_keys(x: torch.Tensor) -> torch.Tensor:
        prefix = x[:, None, :num_prefix].expand(-1, num_windows, -1, -1)
        x = _pick(x[:, num_prefix:].unflatten(1, (rows.num_keys, columns.num_keys)), rows.keys, columns.keys)
        x = x.reshape(images, rows.count, rows.length, columns.count, columns.length, -1)
        x = x.transpose(2, 3).reshape(images, num_windows, rows.length * columns.length, -1)
        return torch.cat((prefix, x), dim=2).flatten(0, 1)

    mask = rows.is_key[:, None, :, None] & columns.is_key[:, None, :]
    mask = mask.reshape(num_windows, rows.length * columns.length)
    mask = torch.cat((mask.new_ones(num_windows, num_prefix), mask), dim=1).expand(images, -1, -1).flatten(0, 1)
    x = attend(cut_queries(query), cut_keys(key), cut_keys(value), num_heads, scale, mask)
    x = x.reshape(images, rows.count, columns.count, rows.span, columns.span, -1)
    x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    tokens = _pick(x, rows.places, columns.places).flatten(1, 2)
    if num_prefix == 0:
        return tokens
    return torch.cat((attend(query[:, :num_prefix], key, value, num_heads, scale), tokens), dim=1)


class _PaddedCut:
    """One axis of a map cut as by :func:`~cvt_dense.models.window_layout.cut`, all windows padded to the longest one.

    Attributes:
        num_keys: Keys of the axis.
        count: Windows.
        length: Keys of each, padding included.
        span: Queries of each, likewise.
        keys: Key at each place of the padded axis.
        is_key: ``(count, length)``, false where a key is padding.
        queries: Query at each place of the padded axis.
        places: Place of each query on the padded axis.
    """

    def __init__(self, size: int, layout: WindowLayout, device: torch.device) -> None:
        _, kv_stride, window_size, _, partial_keys = layout
        self.num_keys, _ = key_map_size((size, size), kv_stride, partial_keys)
        keys_per_window = -(-window_size // kv_stride)
        self.count = _unguarded((self.num_keys + keys_per_window - 1) // keys_per_window)
        # At least 2, even if one of them is masked: a graph treats sides of 1 specially.
        self.length = _unguarded((self.num_keys + self.count - 1) // self.count, 2)
        short, num_long = self.num_keys // self.count, self.num_keys % self.count
        window, slot = torch.arange(self.count, device=device), torch.arange(self.length, device=device)
        first_key = window * short + window.clamp(max=num_long)
        self.is_key = slot < (short + (window < num_long).long())[:, None]
        self.keys = (first_key[:, None] + slot).flatten().clamp(max=self.num_keys - 1)
        self.span = self.length * kv_stride
        if not partial_keys:  # the last window has the queries that are left over
            self.span = _unguarded(self.span + size - self.num_keys * kv_stride, 2)
        offset = torch.arange(self.span, device=device)
        self.queries = (first_key[:, None] * kv_stride + offset).flatten().clamp(max=size - 1)
        query = torch.arange(size, device=device)
        key = (query // kv_stride).clamp(max=self.num_keys - 1)
        window = torch.maximum(key // (short + 1), (key - num_long) // short)
        first_query = (window * short + window.clamp(max=num_long)) * kv_stride
        self.places = window * self.span + query - first_query


def _unguarded(number: int, least: int = 1) -> int:
    """A number of at least so much that torch.export takes for any: it would bind the graph to what it could infer."""
    if torch.jit.is_tracing():
        return number
    number = torch.scalar_tensor(number, dtype=torch.long).clamp(min=least).item()
    torch._check(number >= least)
    return number


def _pick(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return x.index_select(1, rows).index_select(2, columns)
