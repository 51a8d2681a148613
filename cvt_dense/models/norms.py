"""Normalisation layers that keep statistics of the batches they have seen."""

from __future__ import annotations

from torch import nn


def keeps_statistics(module: nn.Module) -> bool:
    """Whether a module keeps running statistics, as any BatchNorm does, synchronised between processes or not.

    Recognised by the counter of batches that such layers have: the classes of other packages, such as mmcv's
    SyncBatchNorm, have no public base class in common with torch's.
    """
    return getattr(module, 'num_batches_tracked', None) is not None
