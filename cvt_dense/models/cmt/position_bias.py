"""CMT's position bias at any size, as channels of queries and keys.

A stage has a table of pairs of absolute places, ``(heads, queries, keys)`` on the grid of the pre-training images. For
other sizes it is interpolated over the queries' two axes and over the keys' two axes. The keys of the grid are few, R,
and the interpolated bias is a product of two matrices with R columns: what each query gives to each key of the grid,
and how much each key is made of each of those. As more channels of queries and keys they add it to the dot products,
whichever kernel computes those, and no matrix of queries x keys is made. R - 1 of them are enough, see
:func:`differences`.
"""

# No annotations from __future__ here: torch.jit reads the fields of named tuples as they are.

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..interpolation import axis_weights
from ..tokens import Size
from ..window_layout import Places, places_in_windows


class BiasGrid(NamedTuple):
    """What a table of a stage is made for.

    Attributes:
        queries: ``(Pq, Qq)``, of the map of queries.
        keys: ``(Pk, Qk)``, of the map of keys; ``R`` is their product.
        kv_stride: Stride of the keys relative to the queries; what is left over at the end of an axis has no key.
        cubic: Whether the table is interpolated by the cubic kernel, and not linearly.
    """

    queries: Size
    keys: Size
    kv_stride: int
    cubic: bool


class PositionChannels(NamedTuple):
    """The bias for maps of one size.

    Attributes:
        query: ``(H * W, heads, R)``, or one less.
        key: ``(Hk * Wk, R)``, likewise.
    """

    query: torch.Tensor
    key: torch.Tensor


def position_channels(table: torch.Tensor, grid: BiasGrid, size: Size, window_size: int) -> PositionChannels:
    """The bias of a table for maps of one size.

    Args:
        table: ``(heads, Pq * Qq, R)``.
        grid: What it is made for.
        size: ``(H, W)``, of the queries' map.
        window_size: Side of the windows that queries attend within: the table is stretched over each of them. 0 for
            the whole map.

    Returns:
        At least in float32, whatever autocast says.
    """
    if not torch.jit.is_scripting():  # noqa: SIM102  torch.jit leaves out a branch by its condition alone
        if table.device.type != 'meta' and torch.is_autocast_enabled(table.device.type):
            with torch.autocast(table.device.type, enabled=False):
                return _position_channels(table, grid, size, window_size)
    return _position_channels(table, grid, size, window_size)


def differences(table: torch.Tensor, grid: BiasGrid, size: Size, window_size: int) -> PositionChannels:
    """The bias as attention needs it: one channel less, and the same softmax.

    A key's shares of those of the grid add up to 1. So what the last one of the grid is given can be taken off the
    others, which changes a query's whole bias by a number, and the softmax of a row not at all.

    Args:
        table: As :func:`position_channels` takes it, and the others.
        grid: Likewise.
        size: Likewise.
        window_size: Likewise.
    """
    query, key = position_channels(table, grid, size, window_size)
    if key.shape[1] == 1:
        return PositionChannels(query, key)
    return PositionChannels(query[:, :, :-1] - query[:, :, -1:], key[:, :-1])


torch.fx.wrap('differences')  # what depends on a map's size is left open in a trace of torch.fx


def positions_of(table: torch.Tensor, grid: BiasGrid, sizes: list[Size], window_size: int) -> list[PositionChannels]:
    """:func:`differences` for maps of several sizes."""
    positions: list[PositionChannels] = []
    for size in sizes:
        positions.append(differences(table, grid, size, window_size))
    return positions


def _position_channels(table: torch.Tensor, grid: BiasGrid, size: Size, window_size: int) -> PositionChannels:
    if table.dtype != torch.float64:
        table = table.float()
    rows = _places(size[0], window_size, grid.kv_stride, table)
    columns = _places(size[1], window_size, grid.kv_stride, table)
    per_row = axis_weights(rows.queries, rows.query_lengths, grid.queries[0], grid.cubic)
    per_column = axis_weights(columns.queries, columns.query_lengths, grid.queries[1], grid.cubic)
    heads, num_keys = table.shape[0], table.shape[2]
    # Rows, then columns: (heads, H, Qq * R), then (heads, H, W, R).
    query = torch.matmul(per_row, table.reshape(heads, grid.queries[0], -1))
    query = torch.matmul(per_column, query.unflatten(2, (grid.queries[1], num_keys)))
    of_row = axis_weights(rows.keys, rows.key_lengths, grid.keys[0], grid.cubic)
    of_column = axis_weights(columns.keys, columns.key_lengths, grid.keys[1], grid.cubic)
    key = of_row[:, None, :, None] * of_column[None, :, None, :]
    return PositionChannels(query.flatten(1, 2).transpose(0, 1), key.flatten(2).flatten(0, 1))


def _places(length: int, window_size: int, kv_stride: int, like: torch.Tensor) -> Places:
    """Where the tokens of an axis are within what the table is stretched over, as floating-point numbers."""
    if window_size > 0:
        places = places_in_windows(length, window_size, kv_stride, False, like.device)
    else:
        query, key = torch.arange(length, device=like.device), torch.arange(length // kv_stride, device=like.device)
        places = Places(query, torch.full_like(query, length), key, torch.full_like(key, length // kv_stride))
    return Places(
        places.queries.to(like.dtype),
        places.query_lengths.to(like.dtype),
        places.keys.to(like.dtype),
        places.key_lengths.to(like.dtype),
    )


def resized(table: torch.Tensor, grid: BiasGrid, size: Size) -> torch.Tensor:
    """The table of a stage for images of another size, by the rule that brings the bias to any size.

    Args:
        table: ``(heads, Pq * Qq, R)``.
        grid: What it is made for.
        size: ``(H, W)``, of the map of queries that it is to be made for.

    Returns:
        ``(heads, H * W, Hk * Wk)``.
    """
    position = position_channels(table, grid, size, 0)
    return torch.einsum('qhr,kr->hqk', position.query, position.key)


def with_position(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    position: PositionChannels,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put a bias into queries and keys, for attention with a scale of 1.

    Args:
        query: ``(N, H * W, C)``.
        key: ``(N, Hk * Wk, C)``.
        value: As ``key``.
        num_heads: Heads that the ``C`` channels are split into, in order.
        scale: Factor on dot products, but not on the bias.
        position: The bias.

    Returns:
        Queries, keys and values with more channels per head, those of the bias. The values' are zeros, which fused
        kernels ask for; :func:`without_position` takes them off.
    """
    query = query.unflatten(-1, (num_heads, -1))
    key = key.unflatten(-1, (num_heads, -1)) * scale  # not the queries, of which there are more
    value = value.unflatten(-1, (num_heads, -1))
    of_query = position.query.to(query.dtype).unsqueeze(0).expand(query.shape[0], -1, -1, -1)
    of_key = position.key.to(key.dtype).unsqueeze(1).expand(key.shape[0], -1, num_heads, -1)
    return (
        torch.cat((query, of_query), dim=-1).flatten(2),
        torch.cat((key, of_key), dim=-1).flatten(2),
        F.pad(value, (0, of_key.shape[-1])).flatten(2),
    )


def without_position(attended: torch.Tensor, num_heads: int, head_dim: int) -> torch.Tensor:
    """What was attended to by what :func:`with_position` made: ``(N, H * W, C)``.

    Args:
        attended: ``(N, H * W, heads * (head_dim + channels of the bias))``.
        num_heads: Heads.
        head_dim: Channels of each, without those of the bias.
    """
    return attended.unflatten(-1, (num_heads, -1))[..., :head_dim].flatten(2)
