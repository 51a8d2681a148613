from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cvt_dense.models.attention import attend
from cvt_dense.models.window_layout import WindowLayout, cut, key_map_size
from cvt_dense.models.windows import attend_in_windows, from_windows, to_windows
from cvt_dense.models.windows_exported import attend_in_padded_windows


@given(rows=st.integers(1, 4), columns=st.integers(1, 4), height=st.integers(1, 5), width=st.integers(1, 5))
def test_windows_are_put_together_as_they_were_cut(rows: int, columns: int, height: int, width: int) -> None:
    x = torch.arange(2 * rows * height * columns * width * 3).view(2, rows * height, columns * width, 3)
    windows = to_windows(x, (rows, columns))
    assert windows.shape == (2 * rows * columns, height * width, 3)
    assert torch.equal(windows[0], x[0, :height, :width].reshape(-1, 3))
    assert torch.equal(from_windows(windows, (rows, columns), (rows * height, columns * width)), x)


def masked_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    layout: WindowLayout,
) -> torch.Tensor:
    """Windowed attention with one head as its definition has it, by a mask of queries x keys."""
    size, kv_stride, window_size, num_prefix, partial_keys = layout

    def labels(length: int, of_keys: bool) -> torch.Tensor:
        runs = cut(length, window_size, kv_stride, partial_keys)
        lengths = [run[2 if of_keys else 1] for run in runs for _ in range(run[0])]
        return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))

    def window_of(of_keys: bool) -> torch.Tensor:
        pairs = torch.cartesian_prod(labels(size[0], of_keys), labels(size[1], of_keys))
        return torch.cat((torch.full((num_prefix,), -1), pairs[:, 0] * 1000 + pairs[:, 1]))

    queries, keys = window_of(of_keys=False)[:, None], window_of(of_keys=True)[None]
    allowed = (queries == keys) | (queries == -1) | (keys == -1)
    products = (0.3 * query @ key.transpose(1, 2)).masked_fill(~allowed, -torch.inf)
    return products.softmax(-1) @ value


@pytest.mark.parametrize('partial_keys', [True, False])
@pytest.mark.parametrize('num_prefix', [0, 1])
@pytest.mark.parametrize(
    ('size', 'kv_stride', 'window_size'),
    [
        ((8, 12), 2, 4),
        ((9, 13), 2, 4),
        ((7, 5), 1, 3),
        ((16, 3), 2, 6),
        ((11, 11), 3, 5),
        ((2, 9), 2, 2),
        ((15, 14), 4, 4),
        ((9, 9), 2, 9),
    ],
)
def test_queries_attend_to_the_keys_of_their_window_with_the_right_gradients(
    size: tuple[int, int], kv_stride: int, window_size: int, num_prefix: int, partial_keys: bool
) -> None:
    num_keys = num_prefix + math.prod(key_map_size(size, kv_stride, partial_keys))
    lengths = (num_prefix + size[0] * size[1], num_keys, num_keys)
    inputs = [torch.randn(2, length, 6, dtype=torch.double, requires_grad=True) for length in lengths]
    layout = WindowLayout(size, kv_stride, window_size, num_prefix, partial_keys)
    ours = attend_in_windows(*inputs, 1, 0.3, layout)
    torch.testing.assert_close(attend_in_padded_windows(*inputs, 1, 0.3, layout), ours)
    expected = masked_attention(*inputs, layout)
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(expected, inputs, direction)
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('window_size', [9, 13, 100])
def test_a_window_as_large_as_the_map_is_exactly_global_attention(window_size: int) -> None:
    query, key = torch.randn(2, 1 + 7 * 9, 12), torch.randn(2, 1 + 4 * 5, 12)
    windowed = attend_in_windows(query, key, key, 3, 0.3, WindowLayout((7, 9), 2, window_size, 1))
    assert torch.equal(windowed, attend(query, key, key, 3, 0.3))


def test_the_operator_for_compiled_graphs_is_a_well_behaved_one() -> None:
    """What torch asks of an operator: schema, shapes without data, gradients, dynamic shapes."""
    query, key, value = (torch.randn(2, n, 12, requires_grad=True) for n in (1 + 7 * 9, 1 + 4 * 5, 1 + 4 * 5))
    for window_size in (4, 9):
        arguments = (query, key, value, 3, 0.3, 7, 9, 2, window_size, 1, True)
        torch.library.opcheck(torch.ops.cvt_dense.attend_in_windows.default, arguments)
        opaque = torch.ops.cvt_dense.attend_in_windows(*arguments)
        plain = attend_in_windows(query, key, value, 3, 0.3, WindowLayout((7, 9), 2, window_size, 1))
        assert torch.equal(opaque, plain)
        direction = torch.randn_like(plain)
        for got, want in zip(
            torch.autograd.grad(opaque, (query, key, value), direction),
            torch.autograd.grad(plain, (query, key, value), direction),
        ):
            torch.testing.assert_close(got, want)
