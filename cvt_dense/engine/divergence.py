"""Training that diverged stops, and never writes its weights over those from before."""

from __future__ import annotations

import math
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from ..errors import UserError
from .processes import unwrapped
from .work_dir import way_on


@HOOKS.register_module()
class StopWhenDivergedHook(Hook):
    """Stops a run at a loss that is NaN or infinite, and before a checkpoint of weights that are."""

    priority = 'LOW'  # after the log has the losses, before CheckpointHook

    #: Losses one after the other that a loss scaler may skip: it halves its scale of 65536 until they are finite.
    SKIPPED = 25

    def __init__(self) -> None:
        self._skipped = 0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Look at the loss, which mmengine has fetched for its log: a GPU is not waited for once more.

        Raises:
            UserError: If it is not finite; with a loss scaler, which skips such a step, if that does not help.
        """
        losses = runner.message_hub.log_scalars.get('train/loss')
        if losses is None or math.isfinite(losses.current()):
            self._skipped = 0
            return
        self._skipped += 1
        if not _has_scaler(runner.optim_wrapper) or self._skipped > self.SKIPPED:
            raise _diverged(runner, f'the loss is {losses.current()} at iteration {runner.iter + 1}')

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Look at the weights: gradients may be NaN where the loss is finite, and the next loss comes after the save.

        Raises:
            UserError: If one is not finite.
        """
        name = first_invalid(unwrapped(runner.model))
        if name:
            raise _diverged(runner, f'{name} is no longer finite at iteration {checkpoint["meta"]["iter"]}')


def _has_scaler(optim_wrapper: Any) -> bool:
    wrappers = optim_wrapper.values() if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
    return any(getattr(wrapper, 'loss_scaler', None) is not None for wrapper in wrappers)


def first_invalid(model: nn.Module) -> str | None:
    """The first parameter that is NaN or infinite, or buffer that is NaN (some are infinite by design); else None."""
    invalid = {name: ~p.detach().isfinite().all() for name, p in model.named_parameters()}
    invalid |= {name: b.isnan().any() for name, b in model.named_buffers()}
    if not invalid or not torch.stack(list(invalid.values())).any():  # one wait for the GPU, not one for each
        return None
    return next(name for name, is_invalid in invalid.items() if is_invalid)


def _diverged(runner: Runner, what: str) -> UserError:
    return UserError(
        f'{what}, and is not saved: lower optim_wrapper.optimizer.lr or set optim_wrapper.clip_grad.max_norm=1.0; '
        f'{way_on(runner.work_dir)}'
    )
