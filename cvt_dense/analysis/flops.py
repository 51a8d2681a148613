"""Count what a model computes, attention included."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

from ..models.cmt.layers import Attention


def count_macs(model: nn.Module, height: int, width: int, in_channels: int = 3) -> int:
    """Multiply-accumulate operations of a forward pass on one image.

    Convolutions, linear layers and both products of attention count; norms, activations and additions do not, as is
    the custom of published tables. A position bias is an addition, by whatever way it gets into attention.

    Args:
        model: Run once, in eval mode and without gradients, on the device of its parameters.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        in_channels: Channels of the image.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, in_channels, height, width, dtype=parameter.dtype, device=parameter.device)
    modes = {module: module.training for module in model.modules()}
    biased = [module for module in model.modules() if isinstance(module, Attention) and module.with_bias]
    # torch's own table lacks the kernel that attention runs on on CPUs.
    mapping = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flop}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    try:
        for module in biased:
            module.with_bias = False
        with torch.no_grad(), counter:
            model.eval()(image)
    finally:
        for module in biased:
            module.with_bias = True
        for module, mode in modes.items():
            module.training = mode
    return counter.get_total_flops() // 2


def _cpu_attention_flop(
    query: torch.Size, key: torch.Size, value: torch.Size, *args: object, out_shape: object = None, **kwargs: object
) -> int:
    return sdpa_flop(query, key, value)
