"""Attention within windows for graphs that leave this process: ONNX, torch.export, traces.

Such a graph has to hold the windows, in plain operators, for whatever size comes. So here all windows are as large as
the largest: the others get one row or column of keys more, which is masked.
"""

from __future__ import annotations

import torch

from .attention import attend
from .window_layout import WindowLayout


def attend_in_padded_windows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    layout: WindowLayout,
) -> torch.Tensor:
    """:func:`cvt_dense.models.windows.attend_in_windows`, in operators that any format has."""
    size, kv_stride, window_size, num_prefix = layout
    rows = _PaddedCut(size[0], window_size, kv_stride, query.device)
    columns = _PaddedCut(size[1], window_size, kv_stride, query.device)
    images, num_windows = query.shape[0], rows.count * columns.count

    def cut_queries(x: torch.Tensor) -> torch.Tensor:
        x = _pick(x[:, num_prefix:].unflatten(1, size), rows.queries, columns.queries)
        x = x.reshape(images, rows.count, rows.length * kv_stride, columns.count, columns.length * kv_stride, -1)
        return x.transpose(2, 3).reshape(images * num_windows, rows.length * columns.length * kv_stride**2, -1)

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
    x = x.reshape(images, rows.count, columns.count, rows.length * kv_stride, columns.length * kv_stride, -1)
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
        keys: Key at each place of the padded axis.
        is_key: ``(count, length)``, false where a key is padding.
        queries: Query at each place of the padded axis.
        places: Place of each query on the padded axis.
    """

    def __init__(self, size: int, window_size: int, kv_stride: int, device: torch.device) -> None:
        # Not -(-a // b), as elsewhere: ONNX divides towards zero.
        self.num_keys = (size + kv_stride - 1) // kv_stride
        keys_per_window = -(-window_size // kv_stride)
        self.count = _unguarded((self.num_keys + keys_per_window - 1) // keys_per_window)
        self.length = _unguarded((self.num_keys + self.count - 1) // self.count)
        short, num_long = self.num_keys // self.count, self.num_keys % self.count
        window, slot = torch.arange(self.count, device=device), torch.arange(self.length, device=device)
        first_key = window * short + window.clamp(max=num_long)
        self.is_key = slot < (short + (window < num_long).long())[:, None]
        self.keys = (first_key[:, None] + slot).flatten().clamp(max=self.num_keys - 1)
        offset = torch.arange(kv_stride, device=device)
        self.queries = (self.keys[:, None] * kv_stride + offset).flatten().clamp(max=size - 1)
        query = torch.arange(size, device=device)
        key = query // kv_stride
        window = torch.maximum(key // (short + 1), (key - num_long) // short)
        slot = key - window * short - window.clamp(max=num_long)
        self.places = (window * self.length + slot) * kv_stride + query % kv_stride


def _unguarded(number: int) -> int:
    """A positive number that torch.export takes for any, 1 included: it would bind the graph to what it could infer."""
    if torch.jit.is_tracing():
        return number
    number = torch.scalar_tensor(number, dtype=torch.long).item()
    torch._check(number >= 1)
    return number


def _pick(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    return x.index_select(1, rows).index_select(2, columns)
