"""What a run is, in a few lines before its first step: model, data, classes, steps, weights, where it writes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..registry import pretrained_sources
from .processes import unwrapped
from .run_checkpoints import Start

_CLASSES = 10  # that are named


def overview(runner: Runner, start: Start, splits: tuple[str, ...]) -> str:
    """Describe a run that is built and about to start.

    Args:
        runner: Its data loaders are built, and its optimizer if it trains.
        start: What its weights come from.
        splits: Those of its data that it uses; it trains if ``train`` is among them.

    Returns:
        A title, and a line for all that can be told: runners, data sets and optimizers may be anyone's.
    """
    trains = 'train' in splits
    rows: dict[str, Callable[[], str]] = dict(model=lambda: _model(runner))
    rows |= {split: lambda split=split: _data(runner, split) for split in splits}
    rows |= dict(classes=lambda: _classes(runner, splits[0]))
    if trains:
        rows |= dict(steps=lambda: _steps(runner), rate=lambda: _rate(runner))
    rows |= dict(
        weights=lambda: _weights(runner, start), writes=lambda: _writes(runner, trains), log=lambda: _log(runner)
    )
    lines = ['training:' if trains else 'evaluation:']
    for name, tell in rows.items():
        with suppress(Exception):
            lines.append(f'    {name:<8} {tell()}')
    return '\n'.join(lines)


def _model(runner: Runner) -> str:
    model = unwrapped(runner.model)
    count = sum(p.numel() for p in model.parameters())
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    parts = f' with {type(model.backbone).__name__}' if hasattr(model, 'backbone') else ''
    device = next(model.parameters()).device
    some = f', {frozen / 1e6:.1f} M of them frozen' if frozen else ''
    return f'{type(model).__name__}{parts}, {count / 1e6:.1f} M parameters{some}, on {device}'


def _data(runner: Runner, split: str) -> str:
    loop = getattr(runner, f'{split}_loop')
    loader = loop.dataloader
    told = f'{len(loader.dataset)} images{_origin(loader.dataset)}'
    if split == 'train':
        return told
    return f'{told}, {loader.batch_sampler.batch_size} at a time{_when(runner) if split == "val" else ""}'


def _origin(dataset: Any) -> str:
    """Where a data set's entries come from."""
    while not hasattr(dataset, 'ann_file') and not hasattr(dataset, 'datasets'):  # what wraps one
        dataset = dataset.dataset
    if hasattr(dataset, 'datasets'):
        return f' of {len(dataset.datasets)} data sets'
    prefix = dataset.data_prefix
    place = dataset.ann_file or prefix.get('img_path') or prefix.get('img') or dataset.data_root
    return f' of {place}' if place else ''


def _when(runner: Runner) -> str:
    loop = runner.train_loop
    unit = 'epochs' if isinstance(loop, EpochBasedTrainLoop) else 'iterations'
    return f', every {_counted(loop.val_interval, unit)}'


def _counted(number: int, unit: str) -> str:
    return unit.removesuffix('s') if number == 1 else f'{number} {unit}'


def _classes(runner: Runner, split: str) -> str:
    names = getattr(runner, f'{split}_loop').dataloader.dataset.metainfo['classes']
    more = f', … {names[-1]}' if len(names) > _CLASSES else ''
    return f'{len(names)}: {", ".join(names[: _CLASSES - bool(more)])}{more}'


def _steps(runner: Runner) -> str:
    loop = runner.train_loop
    length = f'{loop.max_iters} iterations'
    if isinstance(loop, EpochBasedTrainLoop):
        epochs = f'{loop.max_epochs} epoch{"s" * (loop.max_epochs != 1)}'
        length = f'{epochs} of {len(loop.dataloader)} iterations'
    batch = f'{loop.dataloader.batch_sampler.batch_size} images'
    if runner.world_size > 1:
        batch = f'{runner.world_size} x {batch}'
    accumulated = (runner.cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1)
    together = f', gradients of {accumulated} together' if accumulated > 1 else ''
    return f'{length}, each of {batch}{together}'


def _rate(runner: Runner) -> str:
    wrapper = runner.optim_wrapper
    rates = {group['lr'] for group in wrapper.optimizer.param_groups}
    told = f'{max(rates):.3g}' if len(rates) == 1 else f'{min(rates):.3g} to {max(rates):.3g} by parameter'
    schedulers = runner.cfg.get('param_scheduler') or []
    names = [entry['type'] for entry in (schedulers if isinstance(schedulers, list) else [schedulers])]
    names = [name if isinstance(name, str) else name.__name__ for name in names]
    schedule = f' ({", ".join(names)})' if names else ''
    kind = {'AmpOptimWrapper': ', in mixed precision', 'BFloat16OptimWrapper': ', in bfloat16'}.get(
        type(wrapper).__name__, ''
    )
    ema = ', weights averaged' if any(isinstance(hook, EMAHook) for hook in runner.hooks) else ''
    scaled = ', before it is scaled to the batch size' if (runner.auto_scale_lr or {}).get('enable') else ''
    return f'{told}{schedule}{scaled}, {type(wrapper.optimizer).__name__}{kind}{ema}'


def _weights(runner: Runner, start: Start) -> str:
    if start.path:
        return f'{start.path}{", to go on from" if start.resume else ""}'
    names = map(str, pretrained_sources(runner.cfg.model['backbone']))
    return f'backbone from {told}' if (told := ', '.join(names)) else 'random: no init_cfg names a checkpoint'


def _writes(runner: Runner, trains: bool) -> str:
    hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    if not trains or not hooks:
        return runner.work_dir
    hook = hooks[0]
    told = f'a checkpoint every {_counted(hook.interval, "epochs" if hook.by_epoch else "iterations")}'
    kept = f'the last {hook.max_keep_ckpts}' if hook.max_keep_ckpts > 1 else 'the last one'
    parts = [kept if hook.max_keep_ckpts > 0 else 'all kept']
    if hook.save_best:
        parts.append(
            f'and the best by {hook.save_best if isinstance(hook.save_best, str) else ", ".join(hook.save_best)}'
        )
    return f'{runner.work_dir}: {told} ({" ".join(parts)})'


def _log(runner: Runner) -> str:
    (path,) = [h.baseFilename for h in runner.logger.handlers if isinstance(h, logging.FileHandler)]
    return f'{Path(runner.log_dir, Path(path).name)}, with the environment and the whole config'
