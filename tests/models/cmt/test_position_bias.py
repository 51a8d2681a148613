from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cvt_dense.models.attention import attend
from cvt_dense.models.cmt.position_bias import (
    BiasGrid,
    PositionChannels,
    differences,
    position_channels,
    with_position,
    without_position,
)
from cvt_dense.models.window_layout import cut

HEADS = 2
GRID = BiasGrid((6, 8), (3, 4), 2, True)


def table_of(grid: BiasGrid, dtype: torch.dtype = torch.double) -> torch.Tensor:
    shape = HEADS, grid.queries[0] * grid.queries[1], grid.keys[0] * grid.keys[1]
    return torch.randn(shape, dtype=dtype)


def interpolated(table: torch.Tensor, grid: BiasGrid, size: tuple[int, int], keys: tuple[int, int]) -> torch.Tensor:
    """The definition: ``(heads, H * W, Hk * Wk)``, over the queries' two axes and then over the keys'."""
    mode = dict(mode='bicubic' if grid.cubic else 'bilinear', align_corners=False)
    x = table.transpose(1, 2).unflatten(2, grid.queries).flatten(0, 1)[None]
    x = F.interpolate(x, size=size, **mode)[0].flatten(1).unflatten(0, (HEADS, -1))  # heads, R, H * W
    x = x.transpose(1, 2).unflatten(2, grid.keys).flatten(0, 1)[None]
    return F.interpolate(x, size=keys, **mode)[0].flatten(1).unflatten(0, (HEADS, -1))


def product(position: PositionChannels) -> torch.Tensor:
    return torch.einsum('qhr,kr->hqk', *position)


@given(height=st.integers(2, 20), width=st.integers(2, 20), cubic=st.booleans())
def test_it_is_the_table_interpolated_over_queries_and_keys(height: int, width: int, cubic: bool) -> None:
    grid = GRID._replace(cubic=cubic)
    table = table_of(grid)
    expected = interpolated(table, grid, (height, width), (height // 2, width // 2))
    torch.testing.assert_close(product(position_channels(table, grid, (height, width), 0)), expected)


def test_on_its_grid_it_is_the_table_to_the_bit() -> None:
    table = table_of(GRID, torch.float32)
    assert torch.equal(product(position_channels(table, GRID, GRID.queries, 0)), table)


def test_each_window_has_the_table_stretched_over_it() -> None:
    size, window = (11, 13), 4
    table = table_of(GRID)
    bias = product(position_channels(table, GRID, size, window))
    bias = bias.unflatten(2, (size[0] // 2, size[1] // 2)).unflatten(1, size)

    def windows(length: int) -> list[tuple[slice, slice]]:
        found, query, key = [], 0, 0
        for count, queries, keys in cut(length, window, 2, partial_keys=False):
            for _ in range(count):
                found.append((slice(query, query + queries), slice(key, key + keys)))
                query, key = query + queries, key + keys
        assert (query, key) == (length, length // 2)
        return found

    for rows, of_rows in windows(size[0]):
        for columns, of_columns in windows(size[1]):
            ours = bias[:, rows, columns, of_rows, of_columns]
            expected = interpolated(table, GRID, ours.shape[1:3], ours.shape[3:])
            torch.testing.assert_close(ours.flatten(3).flatten(1, 2), expected)


@pytest.mark.parametrize('window', [13, 14, 40])
def test_a_window_that_covers_the_map_has_the_bias_of_the_map(window: int) -> None:
    table = table_of(GRID)
    for ours, expected in zip(
        position_channels(table, GRID, (9, 13), window), position_channels(table, GRID, (9, 13), 0)
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(('dtype', 'expected'), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_it_is_computed_in_float32_at_least_whatever_autocast_says(dtype: torch.dtype, expected: torch.dtype) -> None:
    table = table_of(GRID).to(dtype)
    plain = position_channels(table, GRID, (9, 13), 0)
    with torch.autocast('cpu', torch.bfloat16):
        lower = position_channels(table, GRID, (9, 13), 0)
    assert all(x.dtype == expected for x in plain)
    assert all(torch.equal(x, y) for x, y in zip(lower, plain))


def attention_with_a_mask(inputs: list[torch.Tensor], bias: torch.Tensor, scale: float) -> torch.Tensor:
    query, key, value = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in inputs)
    weights = (scale * query @ key.transpose(2, 3) + bias).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def attention_with_channels(inputs: list[torch.Tensor], position: PositionChannels, scale: float) -> torch.Tensor:
    query, key, value = with_position(*inputs, HEADS, scale, position)
    return without_position(attend(query, key, value, HEADS, 1.0), HEADS, inputs[0].shape[-1] // HEADS)


@pytest.mark.parametrize('channels', [position_channels, differences])
def test_as_channels_it_adds_to_the_dot_products_with_the_right_gradients(channels: Any) -> None:
    size = (7, 10)
    table = table_of(GRID).requires_grad_()
    lengths = (7 * 10, 3 * 5, 3 * 5)
    inputs = [torch.randn(2, length, 6, dtype=torch.double, requires_grad=True) for length in lengths]
    ours = attention_with_channels(inputs, channels(table, GRID, size, 0), 0.3)
    expected = attention_with_a_mask(inputs, interpolated(table, GRID, size, (3, 5)), 0.3)
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, [*inputs, table], direction),
        torch.autograd.grad(expected, [*inputs, table], direction),
    ):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize('window', [0, 4])
def test_differences_are_the_bias_less_a_number_for_each_query_in_one_channel_less(window: int) -> None:
    table = table_of(GRID)
    whole, less = (function(table, GRID, (9, 13), window) for function in (position_channels, differences))
    assert (whole.key.shape[1], less.key.shape[1]) == (12, 11)
    number = product(whole) - product(less)
    torch.testing.assert_close(number, number[..., :1].expand_as(number))
    alone = BiasGrid((2, 2), (1, 1), 2, True)
    assert product(differences(table_of(alone), alone, (4, 6), 0)).shape == (HEADS, 24, 6)


def test_it_can_be_scripted() -> None:
    table = table_of(GRID)
    scripted: Any = torch.jit.script(differences)
    for window in (0, 4):
        for ours, expected in zip(scripted(table, GRID, (9, 13), window), differences(table, GRID, (9, 13), window)):
            assert torch.equal(ours, expected)
