"""Batches of images of several sizes: all tokens in one row, with nothing in between.

Layers that look at one token at a time take the row as any other batch. Those that look around, convolutions and
attention, take it apart: *parts* are batches of images of one size, as one is used to. A batch of images of one size
is its only part, and no tensor is copied for it.
"""

# No annotations from __future__ here: torch.jit reads the fields of named tuples as they are.

from typing import NamedTuple

import torch

from .tokens import Size, tokens_to_map


class Layout(NamedTuple):
    """Which maps the tokens of a batch are of, part by part.

    Attributes:
        counts: Images in each part.
        sizes: ``(H, W)`` of their maps.
    """

    counts: list[int]
    sizes: list[Size]


def pack(parts: list[torch.Tensor]) -> torch.Tensor:
    """Put the tokens of all parts into one row.

    Args:
        parts: ``(n_i, L_i, C)`` each.

    Returns:
        ``(1, sum of n_i * L_i, C)``, or the only part as it is.
    """
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part.flatten(0, 1) for part in parts]).unsqueeze(0)


def unpack(tokens: torch.Tensor, counts: list[int], lengths: list[int]) -> list[torch.Tensor]:
    """Take a row of tokens apart: what :func:`pack` was given, as views.

    Args:
        tokens: As :func:`pack` returns them, in any number of channels.
        counts: Images ``n_i`` of each part.
        lengths: Tokens ``L_i`` of each of its images.
    """
    if len(counts) == 1:
        return [tokens]
    parts: list[torch.Tensor] = []
    start = 0
    for count, length in zip(counts, lengths):
        parts.append(tokens[0, start : start + count * length].unflatten(0, (count, length)))
        start += count * length
    return parts


def token_counts(layout: Layout, num_prefix: int) -> list[int]:
    """Tokens of each image, part by part, with ``num_prefix`` ones in front of its map's."""
    return [num_prefix + size[0] * size[1] for size in layout.sizes]


def to_maps(tokens: torch.Tensor, layout: Layout, num_prefix: int) -> list[torch.Tensor]:
    """View tokens, less those in front, as the ``(n_i, C, H_i, W_i)`` map of each part (channels-last in memory)."""
    maps: list[torch.Tensor] = []
    for part, size in zip(unpack(tokens, layout.counts, token_counts(layout, num_prefix)), layout.sizes):
        maps.append(tokens_to_map(part[:, num_prefix:], size))
    return maps
