"""Attention that is as sharp among the keys of a large image as among those that it was trained on.

A softmax over more keys is flatter: what a query looks for gets a smaller share. To keep that share, dot products have
to grow with the logarithm of the number of keys.
"""

from __future__ import annotations

import torch

from .tokens import Size
from .window_layout import key_map_size


def scale_by_key_count(
    query: torch.Tensor,
    key: torch.Tensor,
    reference_count: int,
    size: Size,
    kv_stride: int,
    window_size: int | None,
    num_prefix: int,
) -> torch.Tensor:
    """Scale queries by the logarithm of the number of keys that they attend to, relative to a reference.

    Source: Chiang and Cholak, "Overcoming a theoretical limitation of self-attention", arXiv 2202.12172.

    Args:
        query: ``(N, P + H * W, C)``.
        key: ``(N, P + Hk * Wk, C)``, with ``Hk = ceil(H / kv_stride)`` and ``Wk = ceil(W / kv_stride)``.
        reference_count: The number of keys for which queries stay as they are, at least 2.
        size: ``(H, W)``.
        kv_stride: Stride of the keys relative to the queries.
        window_size: Side of the windows that queries attend within, which count as large as they may be; None for the
            whole map.
        num_prefix: ``P``, tokens that attend to all keys, and that all queries attend to.

    Returns:
        ``query * log(keys) / log(reference_count)``, of the query's shape and type.
    """
    # Tensors, not numbers: a graph that is exported asks the image that comes, and not the one that it was made with.
    all_keys = torch.ones_like(key[0, :, 0], dtype=torch.float32).sum()
    scaled = _scaled(query, all_keys, reference_count)
    if window_size is None:
        return scaled
    per_window = -(-window_size // kv_stride)
    key_size = key_map_size(size, kv_stride)
    rows = torch.scalar_tensor(key_size[0], device=key.device).clamp(max=per_window)
    columns = torch.scalar_tensor(key_size[1], device=key.device).clamp(max=per_window)
    within_windows = _scaled(query[:, num_prefix:], rows * columns + num_prefix, reference_count)
    return torch.cat((scaled[:, :num_prefix], within_windows), dim=1)


def _scaled(query: torch.Tensor, count: torch.Tensor, reference_count: int) -> torch.Tensor:
    reference = torch.full_like(count, reference_count)
    return query * (count.log() / reference.log()).to(query.dtype)
