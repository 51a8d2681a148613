"""What leaves a backbone: maps that keep each of its parameters in training, whichever of them are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def tied(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of a model, tied together: the gradient of one that nothing reads is zero, and not missing.

    So what leads to any of them has a gradient as soon as one of them is read. Without that, a neck that begins at
    the second map leaves the norm of the first without a gradient, and DistributedDataParallel stops at the second
    step. A gradient of zeros is a gradient: weight decay and running averages of optimizers act on such parameters.

    Args:
        outputs: Of any shapes. May not be changed in place before they are copied.

    Returns:
        The same values. Only gradients differ: if none is recorded, the outputs as they are.
    """
    if (
        len(outputs) > 1
        and torch.is_grad_enabled()
        and any(output.requires_grad for output in outputs)
        and not torch.jit.is_tracing()
        and not _is_exporting()
    ):
        return list(_Tied.apply(*outputs))
    return list(outputs)


def fresh(x: Tensor) -> Tensor:
    """A copy of an ``(N, C, H, W)`` map in contiguous memory.

    ``contiguous()`` would return a map of one pixel, whose memory is in any order, as it is; a head that works in
    place would then write into what the backward pass needs.
    """
    return x.clone(memory_format=torch.contiguous_format)


def _is_exporting() -> bool:
    """Whether torch.export is at work; a file has no use for gradients. (PyTorch 2.6 cannot tell, and traces them.)"""
    return hasattr(torch.compiler, 'is_exporting') and torch.compiler.is_exporting()


class _Tied(Function):
    """The identity. Autograd hands its backward pass zeros for outputs without a gradient."""

    @staticmethod
    def forward(*outputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.view_as(output) for output in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        return gradients
