"""Which layers may be computed by another formula: those that are exactly what the formula was written for.

A fast path that reads a layer's weights goes round the layer. Other people's code lives there: hooks, pruning,
weight normalisation, adapters such as LoRA, quantizers, layers of another class under the same name, tensors of
another kind as weights. Where any of it is found, the layer has to be called as it is.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as _every_module

#: By name, for the third, which stands for a parameter in torch.export, is private.
_TENSORS = ('Parameter', 'Tensor', 'FakeTensor')


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether calling a module does what its class does, and nothing else.

    Args:
        module: The layer.
        kinds: The classes that it may be of. A subclass is another one; parametrizations make one, too.

    Returns:
        False if it is of another class, has hooks or a ``forward`` of its own, or if hooks are set for all modules.
    """
    return type(module) in kinds and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _every_module._global_forward_hooks
        or _every_module._global_forward_pre_hooks
        or _every_module._global_backward_hooks
        or _every_module._global_backward_pre_hooks
        or 'forward' in module.__dict__
    )


def is_plain_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a bias, and :func:`is_plain`."""
    return is_plain(module, nn.Linear) and _has_plain(module, 'weight', 'bias')


def is_idle(module: nn.Module) -> bool:
    """Whether a module returns what it gets, and is :func:`is_plain`."""
    return is_plain(module, nn.Identity) or (is_plain(module, nn.Dropout) and module.p == 0)


def is_foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether a BatchNorm is a scale and a shift that the convolution before it can take over, both being plain.

    So it is if it keeps its statistics: in eval mode, synchronised between processes or not.
    """
    return (
        not norm.training
        and is_plain(norm, nn.BatchNorm2d, nn.SyncBatchNorm)
        and is_plain(conv, nn.Conv2d)
        and conv.padding_mode == 'zeros'
        and norm.running_mean is not None
        and norm.running_var is not None
        and _has_plain(norm, 'weight', 'bias')
        and _has_plain(conv, 'weight')
        and (_held(conv, 'bias') is None or _has_plain(conv, 'bias'))
        and _held(norm, 'weight').dtype == _held(conv, 'weight').dtype
    )


def is_foldable_before(norm: nn.Module, conv: nn.Module) -> bool:
    """Whether the convolution after a BatchNorm can take it over: as :func:`is_foldable`, and nothing is padded.

    What is padded is zero behind the BatchNorm, and not before it.
    """
    return is_foldable(conv, norm) and conv.padding == (0, 0) and conv.groups == 1


def _has_plain(module: nn.Module, *names: str) -> bool:
    """Whether parameters are there, and are dense tensors of torch itself: others compute by rules of their own."""
    return all(type(_held(module, name)).__name__ in _TENSORS for name in names)


def _held(module: nn.Module, name: str) -> Any:
    """A parameter, or the tensor that FSDP puts in its place in a forward pass, and takes away for a backward pass.

    Not by attribute, which torch.fx replaces by what stands for it in its graph.
    """
    return module._parameters[name] if name in module._parameters else module.__dict__.get(name)
