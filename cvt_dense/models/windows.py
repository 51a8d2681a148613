"""Attention within windows."""

from __future__ import annotations

from typing import Any

import torch

from .attention import attend
from .tokens import Size
from .window_layout import WindowLayout, cut, key_map_size
from .windows_exported import attend_in_padded_windows


def attend_in_windows(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    layout: WindowLayout,
) -> torch.Tensor:
    """Multi-head attention of every query to the keys of its window.

    The map is cut into the fewest windows that are no larger than asked for, as evenly as the stride of the keys
    allows, whatever its size: nothing is padded and nothing masked. A window at least as large as the map gives what
    :func:`~cvt_dense.models.attention.attend` does. A cls token attends to all keys and is a key in every window.

    Args:
        query: ``(N, P + H * W, C)``, ``P`` being the layout's ``num_prefix``.
        key: ``(N, P + Hk * Wk, C)``, of a map as :func:`~cvt_dense.models.window_layout.key_map_size` says.
        value: As ``key``.
        num_heads: Heads that the ``C`` channels are split into, in order.
        scale: Factor on the dot products.
        layout: The size of the map and of the windows.

    Returns:
        ``(N, P + H * W, C)``.
    """
    if not torch.jit.is_scripting():  # torch.jit leaves out a branch by its condition alone
        if torch.compiler.is_dynamo_compiling():
            return _attend_in_windows_opaquely(query, key, value, num_heads, scale, *layout.size, *layout[1:])
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # torch.export, or a trace
            return attend_in_padded_windows(query, key, value, num_heads, scale, layout)
    return _attend_window_by_window(query, key, value, num_heads, scale, layout)


def _attend_window_by_window(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    layout: WindowLayout,
) -> torch.Tensor:
    size, kv_stride, window_size, num_prefix, partial_keys = layout
    if window_size >= max(size):
        return attend(query, key, value, num_heads, scale)
    rows = cut(size[0], window_size, kv_stride, partial_keys)
    columns = cut(size[1], window_size, kv_stride, partial_keys)
    kv_size = key_map_size(size, kv_stride, partial_keys)
    query_map = query[:, num_prefix:].unflatten(1, size)
    key_map, value_map = key[:, num_prefix:].unflatten(1, kv_size), value[:, num_prefix:].unflatten(1, kv_size)
    key_prefix, value_prefix = key[:, :num_prefix], value[:, :num_prefix]
    bands = []
    top = 0
    for row in rows:
        pieces = []
        left = 0
        for column in columns:
            y, x = top * kv_stride, left * kv_stride
            height, width = row[0] * row[1], column[0] * column[1]
            kv_height, kv_width = row[0] * row[2], column[0] * column[2]
            counts = (row[0], column[0])
            attended = attend(
                to_windows(query_map[:, y : y + height, x : x + width], counts),
                _with_prefix(
                    key_prefix, to_windows(key_map[:, top : top + kv_height, left : left + kv_width], counts), counts
                ),
                _with_prefix(
                    value_prefix,
                    to_windows(value_map[:, top : top + kv_height, left : left + kv_width], counts),
                    counts,
                ),
                num_heads,
                scale,
            )
            pieces.append(from_windows(attended, counts, (height, width)))
            left += kv_width
        bands.append(torch.cat(pieces, dim=2) if len(pieces) > 1 else pieces[0])
        top += row[0] * row[2]
    tokens = (torch.cat(bands, dim=1) if len(bands) > 1 else bands[0]).flatten(1, 2)
    if num_prefix == 0:
        return tokens
    return torch.cat((attend(query[:, :num_prefix], key, value, num_heads, scale), tokens), dim=1)


def to_windows(x: torch.Tensor, counts: Size) -> torch.Tensor:
    """Cut an ``(N, H, W, C)`` map into ``counts`` windows of one size: ``(N * windows, tokens, C)``."""
    x = x.unflatten(2, (counts[1], -1)).unflatten(1, (counts[0], -1))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: torch.Tensor, counts: Size, size: Size) -> torch.Tensor:
    """Put windows together again: ``(N * windows, tokens, C)`` to an ``(N, H, W, C)`` map of ``size``."""
    height, width = size[0] // counts[0], size[1] // counts[1]
    x = x.unflatten(1, (height, width)).unflatten(0, (-1, counts[0], counts[1]))
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _with_prefix(prefix: torch.Tensor, windows: torch.Tensor, counts: Size) -> torch.Tensor:
    if prefix.shape[1] == 0:
        return windows
    return torch.cat((prefix.repeat_interleave(counts[0] * counts[1], dim=0), windows), dim=1)


# How a map is cut depends on its size in ways that torch.compile would have to guard: it would compile anew for most
# sizes, or fail. As operators of their own, windows are a matter of the run, and one graph serves all sizes.


@torch.library.custom_op('cvt_dense::attend_in_windows', mutates_args=())
def _attend_in_windows_opaquely(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    height: int,
    width: int,
    kv_stride: int,
    window_size: int,
    num_prefix: int,
    partial_keys: bool = True,
) -> torch.Tensor:
    layout = WindowLayout((height, width), kv_stride, window_size, num_prefix, partial_keys)
    return _attend_window_by_window(query, key, value, num_heads, scale, layout).contiguous()


# Not by custom_op, inside of which autograd does not record.
torch.library.define(
    'cvt_dense::attend_in_windows_backward',
    '(Tensor gradient, Tensor query, Tensor key, Tensor value, int num_heads, float scale, SymInt height, SymInt width,'
    ' int kv_stride, int window_size, int num_prefix, bool partial_keys) -> (Tensor, Tensor, Tensor)',
)


@torch.library.impl('cvt_dense::attend_in_windows_backward', 'default')
def _gradients_in_windows(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    height: int,
    width: int,
    *settings: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value; attends once more, since what SDPA keeps cannot leave its operator."""
    layout = WindowLayout((height, width), *settings)
    with torch.enable_grad():
        inputs = [x.detach().requires_grad_() for x in (query, key, value)]
        attended = _attend_window_by_window(*inputs, num_heads, scale, layout)
    gradients = torch.autograd.grad(attended, inputs, gradient)
    return gradients[0].contiguous(), gradients[1].contiguous(), gradients[2].contiguous()


@_attend_in_windows_opaquely.register_fake
def _(query: torch.Tensor, *args: object) -> torch.Tensor:
    return torch.empty_like(query, memory_format=torch.contiguous_format)


@torch.library.register_fake('cvt_dense::attend_in_windows_backward')
def _(gradient: torch.Tensor, *args: object) -> tuple[torch.Tensor, ...]:
    query, key, value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in args[:3])
    return query, key, value


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.settings = inputs[3:]


def _backward_in_windows(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    gradients = torch.ops.cvt_dense.attend_in_windows_backward(gradient, *ctx.saved_tensors, *ctx.settings)
    return (*gradients, *[None] * len(ctx.settings))


_attend_in_windows_opaquely.register_autograd(_backward_in_windows, setup_context=_keep_for_backward)
