"""Stages in a row, each on the map of the one before."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

from collections.abc import Iterable

import torch
from torch import nn


def run_stages(self: Iterable[nn.Module], x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Compute stages one after the other.

    Args:
        self: The stages. Each returns the tokens and the size of its map, and has ``to_map``, which views them as the
            map. Called ``self`` because this is a method too, :meth:`Stages.forward`.
        x: What the first one takes: ``(N, C, H, W)``.

    Returns:
        Tokens and map of each stage: ``(N, P + H_i * W_i, C_i)``, with ``P`` tokens such as a cls token in front, and
        ``(N, C_i, H_i, W_i)``, a view of them.
    """
    outputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    for stage in self:
        tokens, size = stage(x)
        x = stage.to_map(tokens, size)
        outputs.append((tokens, x))
    return outputs


class Stages(nn.ModuleList):
    """Stages as a module, for torch.jit: it takes no modules as arguments of functions."""

    forward = run_stages
