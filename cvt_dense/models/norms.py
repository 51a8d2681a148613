"""Normalisation layers that keep statistics of the batches they have seen."""

from __future__ import annotations

import torch
from torch import nn

from .layout import Layout, pack, to_maps
from .tokens import map_to_tokens, tokens_to_map


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics, as any BatchNorm does, synchronised between processes or not.

    Recognised by the counter of batches that such layers have: the classes of other packages, such as mmcv's
    SyncBatchNorm, have no public base class in common with torch's.
    """
    return getattr(module, 'num_batches_tracked', None) is not None


def normalised_maps(norm: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Normalise the map of each part of a batch.

    A BatchNorm that normalises by the batch sees all of it at once: its statistics are those of all places of all
    images, and processes that synchronise theirs call it equally often, whatever sizes their images have.

    Args:
        norm: A BatchNorm, or what may be there in its place.
        maps: ``(n_i, C, H_i, W_i)`` of each part.
    """
    if len(maps) == 1 or not (norm.training and keeps_statistics(norm)):
        return [norm(x) for x in maps]
    row = pack([map_to_tokens(x) for x in maps])
    # Not by unsqueeze(): PyTorch's backward passes on CPUs may misread what strides it leaves to sides of 1.
    row = map_to_tokens(norm(tokens_to_map(row, (1, row.shape[1]))))
    return to_maps(row, Layout([x.shape[0] for x in maps], [(x.shape[2], x.shape[3]) for x in maps]), 0)


def normalised_at_the_end(layers: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Compute the map of each part of a batch by layers in a row, the last of which normalises all of them at once.

    Args:
        layers: A ``Sequential`` with a BatchNorm at its end, or what may be there in its place.
        maps: ``(n_i, C, H_i, W_i)`` of each part.
    """
    if len(maps) == 1 or not isinstance(layers, nn.Sequential):
        return [layers(x) for x in maps]
    *first, norm = layers
    for layer in first:
        maps = [layer(x) for x in maps]
    return normalised_maps(norm, maps)
