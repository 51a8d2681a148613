"""Stages in a row, each on the maps of the one before."""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

from collections.abc import Iterable

import torch
from torch import nn


def run_stages(self: Iterable[nn.Module], maps: list[torch.Tensor]) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Compute stages one after the other.

    Args:
        self: The stages. Each returns the tokens and the layout of its maps, and has ``to_maps``, which views them as
            the maps. Called ``self`` because this is a method too, :meth:`Stages.forward`.
        maps: What the first one takes: ``(n_i, C, H_i, W_i)`` of each part of the batch
            (:mod:`~cvt_dense.models.layout`); one for images of one size.

    Returns:
        Tokens and maps of each stage: for images of one size ``(N, P + H * W, C)``, with ``P`` tokens such as a cls
        token in front, else all in one row; and ``(n_i, C, H_i, W_i)`` of each part, views of them.
    """
    outputs: list[tuple[torch.Tensor, list[torch.Tensor]]] = []
    for stage in self:
        tokens, layout = stage(maps)
        maps = stage.to_maps(tokens, layout)
        outputs.append((tokens, maps))
    return outputs


class Stages(nn.ModuleList):
    """Stages as a module, for torch.jit: it takes no modules as arguments of functions."""

    forward = run_stages
