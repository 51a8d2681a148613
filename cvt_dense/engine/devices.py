"""Several processes on the engine's own torch.distributed, without a GPU too."""

from __future__ import annotations

import sys

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import FUNCTIONS
from torch import distributed, nn

from ..models.cvt.layers import Block


def use_gloo_without_gpu(cfg: Config) -> None:
    """Start the processes' group on CPUs, where mmengine would ask for a GPU each.

    With GPUs nothing is done: mmengine starts the group by ``env_cfg.dist_cfg``, nccl by default.

    Args:
        cfg: Config of the run, changed in place; its launcher is ``'pytorch'`` or ``'none'``.
    """
    if cfg.launcher == 'none' or torch.cuda.is_available():
        return
    if not distributed.is_initialized():
        distributed.init_process_group('gloo')
    # mmengine would pass the GPU of this process to the wrappers.
    if 'strategy' in cfg:
        wrapper = cfg.strategy.setdefault('model_wrapper', ConfigDict())
        wrapper.update(dict(device_id=torch.device('cpu')) if 'FSDP' in cfg.strategy.type else dict(device_ids=None))
    else:
        wrapper = ConfigDict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = ConfigDict(wrapper | cfg.get('model_wrapper_cfg', {}) | dict(device_ids=None))
    if distributed.get_rank() == 0:
        print(f'no GPU: {distributed.get_world_size()} processes on CPUs, by gloo', file=sys.stderr)


@FUNCTIONS.register_module()
def wrap_cvt_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """Policy of FSDP, as ``auto_wrap_policy``: each block of CvT is gathered, computed and let go by itself.

    Args:
        module: A part of the model.
        recurse: Whether FSDP asks if it should look into the module, and not if it should wrap it.
        nonwrapped_numel: Parameters that would be wrapped.
    """
    return recurse or isinstance(module, Block)
