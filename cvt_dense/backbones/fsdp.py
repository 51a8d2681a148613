"""How FSDP is to cut a backbone."""

from __future__ import annotations

from mmengine.registry import FUNCTIONS
from torch import nn

from ..models.blocks import ResidualBlock


@FUNCTIONS.register_module(name=['wrap_backbone_blocks', 'wrap_cvt_blocks'])
def wrap_backbone_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Policy of FSDP, as ``auto_wrap_policy``: each block of a backbone is gathered, computed and let go by itself.

    Args:
        module: A part of the model.
        recurse: Whether FSDP asks if it should look into the module, and not if it should wrap it.
        nonwrapped_numel: Parameters that would be wrapped.
    """
    return recurse or isinstance(module, ResidualBlock)
