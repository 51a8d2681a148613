"""Activation checkpointing: blocks computed once more in the backward pass, without counting their batch twice."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .norms import keeps_statistics


def recomputed(block: nn.Module, *inputs: Any) -> torch.Tensor:
    """A block's output, its activations computed once more in the backward pass instead of kept."""
    if not torch.is_grad_enabled():
        return block(*inputs)
    contexts = (nullcontext(), _KeepRunningStatistics(block))
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: contexts)


class _KeepRunningStatistics(AbstractContextManager):
    """Lets BatchNorm in training mode normalise by the batch once more without counting it a second time.

    Can be entered anew for each backward pass through a graph that is retained.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: dict[nn.Module, tuple[float | None, torch.Tensor]] = {}

    def __enter__(self) -> None:
        for module in self.module.modules():
            if module.training and keeps_statistics(module):
                self.kept[module] = module.momentum, module.num_batches_tracked.clone()
                module.momentum = 0.0

    def __exit__(self, *exception: object) -> None:
        for module, (momentum, num_batches) in self.kept.items():
            module.momentum = momentum
            module.num_batches_tracked.copy_(num_batches)
        self.kept.clear()
