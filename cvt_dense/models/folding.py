"""BatchNorm on kept statistics as a part of a convolution next to it.

It is a scale and a shift of each channel then, which go into the convolution's weights as they are used: one pass over
the map instead of two, in training too.

Not in a graph of torch.fx: to its tracer buffers are constants, and the graph would compute with the statistics of the
moment of the trace, whatever is trained or loaded afterwards. There the layers are called.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from .plain import is_foldable, is_foldable_before

Affine = tuple[torch.Tensor, torch.Tensor | None]  # weight and bias of a convolution


def convolved_and_normalised(conv: nn.Module, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``norm(conv(x))``, in one pass if :func:`~cvt_dense.models.plain.is_foldable` says so."""
    if not isinstance(x, torch.fx.Proxy) and is_foldable(conv, norm):
        return _convolve(conv, _followed_by(norm, (conv.weight, conv.bias)), x)
    return norm(conv(x))


def normalised_and_convolved(
    first: nn.Module, conv: nn.Module, last: nn.Module, x: torch.Tensor
) -> torch.Tensor | None:
    """``last(conv(first(x)))`` of two BatchNorms and a convolution without padding, in one pass.

    Returns:
        None if they cannot be computed so, as :mod:`~cvt_dense.models.plain` says.
    """
    if isinstance(x, torch.fx.Proxy) or not (is_foldable_before(first, conv) and is_foldable(conv, last)):
        return None
    return _convolve(conv, _followed_by(last, _after(first, (conv.weight, conv.bias))), x)


def _followed_by(norm: nn.Module, affine: Affine) -> Affine:
    weight, bias = affine
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    return weight * scale[:, None, None, None], shift if bias is None else shift + bias * scale


def _after(norm: nn.Module, affine: Affine) -> Affine:
    weight, bias = affine
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = norm.bias - norm.running_mean * scale
    shifted = (weight * shift[:, None, None]).sum((1, 2, 3))
    return weight * scale[:, None, None], shifted if bias is None else bias + shifted


def _convolve(conv: nn.Module, affine: Affine, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(x, *affine, conv.stride, conv.padding, conv.dilation, conv.groups)
