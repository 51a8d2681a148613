"""Mixed precision in bfloat16, on GPUs and CPUs, with the operators that cannot take it kept in float32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn
from torch.utils._pytree import tree_map

#: Attribute of a module that computes in float32: the ``forward`` that it had of its own, or None.
_BEFORE = '_forward_before_float32'


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """An optimizer wrapper that computes losses under autocast to bfloat16.

    bfloat16 has float32's range, so losses need no scaling; mmengine's AmpOptimWrapper has a scaler and refuses CPUs.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """What mmengine enters around the forward pass."""
        with super().optim_context(model), torch.autocast(get_device(), torch.bfloat16):
            yield


@HOOKS.register_module()
class Float32OperatorsHook(Hook):
    """Keeps a detector's boxes and mmcv's operators in float32, whatever autocast says.

    mmcv's kernels know no bfloat16, and boxes in bfloat16 would be off by up to 4 pixels at a side of 1000.
    """

    def before_train(self, runner: Runner) -> None:
        """Wrap the modules of the runner's model."""
        keep_operators_in_float32(runner.model)


def keep_operators_in_float32(model: nn.Module) -> list[str]:
    """Let a model's RoI extractors and deformable attention compute in float32, and its box heads return that.

    Copies of the model, and what is pickled of it, do so with weights of their own. A second call changes nothing.

    Returns:
        The names of the modules.
    """
    throughout, at_the_end = _float32_modules()
    names = []
    for name, module in model.named_modules():
        if isinstance(module, throughout):
            _exchange_forward(module, _forward_in_float32)
            names.append(name)
        elif isinstance(module, at_the_end):
            _exchange_forward(module, _forward_to_float32)
            names.append(name)
    return names


def _exchange_forward(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Put a function of this file in the place of a module's ``forward``, which it calls.

    As a partial: when a module is copied or pickled, it gets the copy, while a closure would go on with the weights
    of the original, and could not be pickled.
    """
    if _BEFORE not in module.__dict__:
        setattr(module, _BEFORE, module.__dict__.get('forward'))  # others exchange it, too
        module.forward = partial(forward, module)


def _forward_before(module: nn.Module) -> Callable[..., Any]:
    return module.__dict__[_BEFORE] or MethodType(type(module).forward, module)


def _float32_modules() -> tuple[tuple[type[nn.Module], ...], tuple[type[nn.Module], ...]]:
    throughout: list[type[nn.Module]] = []
    at_the_end: list[type[nn.Module]] = []
    if find_spec('mmdet'):
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
        from mmdet.models.roi_heads.bbox_heads import BBoxHead
        from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor

        throughout.append(BaseRoIExtractor)
        at_the_end += [BaseDenseHead, BBoxHead]
    if find_spec('mmcv') and find_spec('mmcv._ext'):
        from mmcv.ops import MultiScaleDeformableAttention

        throughout.append(MultiScaleDeformableAttention)
    return tuple(throughout), tuple(at_the_end)


def _as_float32(value: Any) -> Any:
    is_low = isinstance(value, torch.Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_low else value


def _forward_in_float32(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    with torch.autocast(get_device(), enabled=False):
        return _forward_before(module)(*tree_map(_as_float32, args), **tree_map(_as_float32, kwargs))


def _forward_to_float32(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return tree_map(_as_float32, _forward_before(module)(*args, **kwargs))
