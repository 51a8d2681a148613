"""Runs that SIGTERM, SIGINT (Ctrl-C) or SIGHUP stops save their work first.

A signal that comes during training is noted and obeyed before the next iteration, of training or validation; at any
other time it raises :class:`Interrupted` at once, so that whatever is open is closed and saved on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from ..signals import Interrupted, signals

#: What a run that was stopped leaves in its work directory, until it has written its next ordinary checkpoint.
INTERRUPTED = 'interrupted.pth'


@HOOKS.register_module()
class InterruptionHook(Hook):
    """Stops a run between two iterations of training, on all processes at the same one, or of validation."""

    priority = 'VERY_HIGH'  # in after_val_epoch before EMAHook, which swaps weights

    def __init__(self) -> None:
        self._on_disk: int | None = None
        self._validates = False

    def before_train(self, runner: Runner) -> None:
        """Note what needs no saving: a start, or the checkpoint that was resumed from."""
        self._on_disk = runner.iter

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Note which iteration is being saved, if it is all that a resume needs."""
        if 'optimizer' in checkpoint:
            self._on_disk = checkpoint['meta']['iter']

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Stop if any process got a signal; where gradients are accumulated, only when there are none."""
        signals.response = 'note'
        if runner.iter % (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1) == 0:
            number = torch.tensor(signals.number, dtype=torch.uint8)
            all_reduce(number, 'max')  # nothing for a single process; with GPUs, the losses were waited for just before
            if number:
                raise Interrupted(int(number), all_stop=True)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Stop if this process got a signal: the others have the same weights, and the first one saves them."""
        self._validates, signals.response = True, 'note'
        if signals.number:
            raise Interrupted(signals.number)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Obey signals at once while metrics are computed, which may take minutes."""
        if batch_idx + 1 == len(runner.val_dataloader):
            signals.response = 'raise'

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Only note signals again."""
        self._validates, signals.response = False, 'note'

    def save(self, runner: Runner) -> str:
        """Save what was trained since the last checkpoint, in the first process; returns what to tell the user."""
        signals.response = 'note'
        where = f'after iteration {runner.iter} of {runner.max_iters}'
        if not isinstance(runner, Runner) or not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
            return f'{where}, not saved: neither sharded models nor configs without checkpoints are'
        if self._on_disk is None:  # it was still starting
            return 'before the first iteration'
        if runner.iter != self._on_disk:
            self._save(runner)
        return where

    def _save(self, runner: Runner) -> None:
        if self._validates:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    hook.after_val_epoch(runner)  # swaps the averaged weights for those in training
        meta = dict(epoch=runner.epoch, iter=runner.iter)
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, meta=meta, by_epoch=False)
        if is_main_process():
            path = Path(runner.work_dir) / INTERRUPTED
            (Path(runner.work_dir) / 'last_checkpoint').write_text(str(path))
