"""Tokens of a map, and views of them as the map."""

from __future__ import annotations

import torch

Size = tuple[int, int]  # height, width of a token map


def tokens_to_map(tokens: torch.Tensor, size: Size) -> torch.Tensor:
    """View ``(N, H * W, C)`` tokens as an ``(N, C, H, W)`` map (channels-last in memory)."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def map_to_tokens(x: torch.Tensor) -> torch.Tensor:
    """View an ``(N, C, H, W)`` map as ``(N, H * W, C)`` tokens; free for channels-last memory."""
    return x.flatten(2).transpose(1, 2)
