"""What a resumed run takes from its checkpoint although its config says something else: it says so."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

#: What of a scheduler's state says how far it is, or repeats the optimizer's rate, and not what it does.
_PROGRESS = {'last_step', '_global_step', '_last_value', 'base_values', 'verbose'}
#: Settings of an optimizer's groups that a schedule changes all the time.
_SCHEDULED = {'params', 'lr', 'momentum', 'betas'}


@HOOKS.register_module()
class ResumeNotesHook(Hook):
    """Says what a resumed run takes from the checkpoint although the config says something else."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare them; what is in the checkpoint is loaded next."""
        if not runner._resume or not isinstance(runner, Runner):
            return
        kept = [*_differences_of_optimizers(runner, checkpoint), *_differences_of_schedules(runner, checkpoint)]
        if kept:
            more = f' and {len(kept) - 3} more' if len(kept) > 3 else ''
            print_log(
                f'the schedule of the checkpoint goes on, not that of the config: {"; ".join(kept[:3])}{more}; to '
                f"train by the config, start from the checkpoint's weights: without --resume, with --cfg-options "
                f'load_from={runner._load_from}',
                logger='current',
                level=logging.WARNING,
            )
        if 'ema_state_dict' in checkpoint and not any(isinstance(hook, EMAHook) for hook in runner.hooks):
            print_log(
                'the checkpoint is of a run with averaged weights, and training goes on from the average; with --ema '
                'it goes on from the weights that were trained',
                logger='current',
                level=logging.WARNING,
            )


def _differences_of_schedules(runner: Runner, checkpoint: Mapping[str, Any]) -> list[str]:
    ours, theirs = runner.param_schedulers, checkpoint.get('param_schedulers')
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return []
    if len(ours) != len(theirs):
        return [f'{len(theirs)} param_schedulers, in the config {len(ours)}']
    found = []
    for number, (scheduler, state) in enumerate(zip(ours, theirs)):
        for name, value in scheduler.state_dict().items():
            if name not in _PROGRESS and name in state and state[name] != value:
                found.append(f'param_scheduler.{number}.{name} {state[name]}, in the config {value}')
    return found


def _differences_of_optimizers(runner: Runner, checkpoint: Mapping[str, Any]) -> list[str]:
    wrapper, theirs = runner.optim_wrapper, (checkpoint.get('optimizer') or {}).get('param_groups')
    if not isinstance(wrapper, OptimWrapper) or not theirs:
        return []
    found: list[str] = []
    for ours, state in zip(wrapper.optimizer.param_groups, theirs):
        for name, value in ours.items():
            if name not in _SCHEDULED and name in state and state[name] != value:
                found.append(f'{name.removeprefix("initial_")} {state[name]}, in the config {value}')
    return list(dict.fromkeys(found))
