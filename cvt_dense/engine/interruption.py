"""Runs that SIGTERM, SIGINT (Ctrl-C) or SIGHUP stops save their work first.

A signal that comes during training is noted and obeyed before the next iteration, of training or validation; at any
other time it raises :class:`Interrupted` at once, so that whatever is open is closed and saved on the way out.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from mmengine.dist import all_reduce, barrier, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner

#: What a run that was stopped leaves in its work directory, until it has written its next ordinary checkpoint.
INTERRUPTED = 'interrupted.pth'


class Interrupted(BaseException):
    """A signal stops the run; as KeyboardInterrupt no Exception, which code on the way might take for an error."""

    def __init__(self, number: int, message: str | None = None) -> None:
        super().__init__(f'stopped by {signal.Signals(number).name}' if message is None else message)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells give a process that a signal ended."""
        return 128 + self.number


class Signals:
    """The signals that this process was sent.

    Attributes:
        number: The first one; 0 if there was none.
        response: ``'raise'`` raises :class:`Interrupted`, wherever the process is, so that it may get lost: look at
            ``number`` too; ``'note'`` leaves it to the code that reads ``number``. A second signal ends the process.
    """

    #: Seconds in which another signal is the same one again: timeout(1) and job managers send it to the process, and to
    #: all of its group.
    TWICE = 1.0

    def __init__(self) -> None:
        self.number = 0
        self.response: Literal['raise', 'note'] = 'raise'
        self._at = 0.0
        self._pid = 0

    def listen(self) -> None:
        """Handle signals from now on, but for those that are ignored, as under nohup."""
        self._pid = os.getpid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a process that was forked, before it has said what signals are to it
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.number:
            if time.monotonic() - self._at > self.TWICE:
                os._exit(128 + number)
            return
        self.number, self._at = number, time.monotonic()
        if self.response == 'raise':
            raise Interrupted(number)
        _say(f'{signal.Signals(number).name}: saving and stopping; once more to stop at once')


def _say(line: str) -> None:
    if is_main_process():
        os.write(2, f'{line}\n'.encode())  # print() may be what was interrupted


signals = Signals()


@HOOKS.register_module()
class InterruptionHook(Hook):
    """Stops a run between two iterations of training, on all processes at the same one, or of validation."""

    priority = 'VERY_HIGH'  # in after_val_epoch before EMAHook, which swaps weights

    def __init__(self) -> None:
        self._on_disk: int | None = None
        self._validates = False
        self._all_stop = False

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
                self._all_stop = True
                raise Interrupted(int(number))

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
        """Save what was trained since the last checkpoint; returns what to tell the user."""
        signals.response = 'note'
        where = f'after iteration {runner.iter} of {runner.max_iters}'
        if not isinstance(runner, Runner) or not any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
            return f'{where}, not saved: neither sharded models nor configs without checkpoints are'
        if self._on_disk is None:  # it was still starting
            return 'before the first iteration'
        if runner.iter != self._on_disk:
            self._save(runner)
        if self._all_stop:  # here; the first to exit would have the others killed
            barrier()
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
