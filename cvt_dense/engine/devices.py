"""GPUs, CPUs and processes: what a run computes on, and what its config has to change for it."""

from __future__ import annotations

import os
import shutil
import sys
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from torch import distributed

from ..errors import UserError, reason
from ..registry import type_name
from .config import hooks_of


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
        wrapper.update(
            dict(device_id=torch.device('cpu')) if 'FSDP' in type_name(cfg.strategy) else dict(device_ids=None)
        )
    else:
        wrapper = ConfigDict(
            type='MMDistributedDataParallel',
            broadcast_buffers=False,
            find_unused_parameters=cfg.get('find_unused_parameters', False),
        )
        cfg.model_wrapper_cfg = ConfigDict(wrapper | cfg.get('model_wrapper_cfg', {}) | dict(device_ids=None))
    if distributed.get_rank() == 0:
        print(f'no GPU: {distributed.get_world_size()} processes on CPUs, by gloo', file=sys.stderr)


def prepare_launcher(cfg: Config) -> None:
    """Get ready for several processes, on GPUs or, with torchrun, on CPUs.

    Raises:
        UserError: If the launcher's environment is missing, or GPUs are and the launcher needs them.
    """
    if cfg.launcher == 'none':
        if 'strategy' in cfg:
            raise UserError(
                f'{type_name(cfg.strategy)} needs several processes: torchrun --nproc_per_node=N … --launcher pytorch'
            )
        return
    if cfg.launcher == 'pytorch' and 'RANK' not in os.environ:
        raise UserError(
            '--launcher pytorch needs the processes that torchrun starts: torchrun --nproc_per_node=N TOOL …'
        )
    if cfg.launcher != 'pytorch' and not torch.cuda.is_available():
        raise UserError(
            f'--launcher {cfg.launcher} needs GPUs, and torch sees none: use torchrun and --launcher pytorch on CPUs'
        )
    is_sharded = 'FSDP' in type_name(cfg.get('strategy'))
    if is_sharded and not torch.cuda.is_available() and hooks_of(cfg).get('checkpoint', {}) is not None:
        raise UserError(
            'FSDP saves checkpoints on GPUs only, and torch sees none: to try it without, leave them out with '
            '--cfg-options default_hooks.checkpoint=None'
        )
    use_gloo_without_gpu(cfg)


def hide_gpu_without_operators(cfg: Config) -> None:
    """Hide the GPU from a detector if mmcv's operators were built without CUDA, and say so.

    mmengine would put the model on it, and the first RoIAlign would fail. To be called before anything asks torch for
    GPUs, which it does once only.

    Raises:
        UserError: If mmcv was built without its operators, or for another torch.
    """
    if cfg.default_scope != 'mmdet':
        return
    try:
        from mmcv.ops import get_compiling_cuda_version  # which segmentation can do without
    except ImportError as error:
        raise UserError(f'mmcv has no working operators: {reason(error)}; run python tools/doctor.py') from error
    if get_compiling_cuda_version() != 'not available':
        return
    os.environ['CUDA_VISIBLE_DEVICES'] = ''
    if shutil.which('nvidia-smi'):
        print(
            'the GPU is not used: mmcv was built without CUDA; install the CUDA toolkit and build mmcv again',
            file=sys.stderr,
        )


def use_batchnorm_without_gpu(cfg: Config) -> None:
    """Turn SyncBN into BN where there is no GPU, which it needs, and say so."""
    if torch.cuda.is_available():
        return
    replaced = _replace_type(cfg.model, 'SyncBN', 'BN')
    if cfg.get('sync_bn'):  # mmengine's setting for all of a model's norms at once
        cfg.sync_bn = None
        replaced += 1
    if replaced:
        print(f'no GPU: {replaced} SyncBN settings of the model are replaced by BN', file=sys.stderr)


def _replace_type(node: Any, old: str, new: str) -> int:
    """Replace ``type=old`` in place all through a config; returns how often."""
    if isinstance(node, (list, tuple)):
        return sum(_replace_type(entry, old, new) for entry in node)
    if not isinstance(node, dict):
        return 0
    hit = type_name(node) == old
    if hit:
        node['type'] = new
    return int(hit) + sum(_replace_type(entry, old, new) for entry in node.values())
