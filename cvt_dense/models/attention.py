"""Attention of all to all, without ever holding the matrix of queries x keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    num_heads: int,
    scale: float,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multi-head attention of every query to every key.

    PyTorch's fused kernels go through the keys in tiles, so the memory needed grows with the number of tokens, not
    with queries x keys.

    Args:
        query: ``(N, Lq, C)``.
        key: ``(N, Lk, C)``.
        value: ``(N, Lk, C)``.
        num_heads: Heads that the ``C`` channels are split into, in order.
        scale: Factor on the dot products.
        mask: ``(N, Lk)``, true for the keys to attend to; None for all.

    Returns:
        ``(N, Lq, C)``.
    """
    if mask is not None:
        mask = mask[:, None, None]
    query = query.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    key = key.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    value = value.unflatten(-1, (num_heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale).transpose(1, 2).flatten(2)
