"""Whether a run is as long as its schedule: what is shortened or lengthened in one place trains, and not as meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from mmengine.config import Config

from ..registry import as_options, type_name

#: Settings of schedulers that count epochs or iterations, and are stretched with a schedule.
_MOMENTS = ('begin', 'end', 'milestones', 'step_size', 'T_max', 'total_steps', 'periods')
#: Schedulers that raise the rate at the start of a run, unless they are told to lower it.
_WARM_UPS = ('LinearLR', 'ConstantLR', 'LinearParamScheduler', 'ConstantParamScheduler', 'QuadraticWarmupLR')
#: A warm-up may take this part of a run.
_LONGEST_WARM_UP = 0.5
#: A run may be longer or shorter than its schedule by this part.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        epochs: None for a loop that counts iterations.
        iterations: None if the number of iterations in an epoch is not known.
    """

    epochs: int | None
    iterations: int | None

    def in_unit(self, by_epoch: bool) -> float | None:
        """In epochs or iterations; None if that is not known."""
        return self.epochs if by_epoch else self.iterations


def lines_of_schedule(cfg: Config, epoch_iterations: int | None = None) -> list[str]:
    """Look for a run that is not as long as its schedule, in which nothing is evaluated or kept, or all is warm-up.

    Args:
        cfg: Config of a run; left as it is.
        epoch_iterations: Iterations of an epoch in each process; None if the data have not been looked at.

    Returns:
        A line for each, with the settings that cure it.
    """
    loop = cfg.get('train_cfg') or {}
    epochs, iterations = loop.get('max_epochs'), loop.get('max_iters')
    if epochs and not iterations and epoch_iterations:
        iterations = epochs * epoch_iterations
    length = Length(epochs, iterations)
    lines = [*_of_evaluation(cfg, length), *_of_checkpoints(cfg, length)]
    lines += [*_of_warm_up(cfg, length), *_of_decay(cfg, length)]
    return lines


def _of_evaluation(cfg: Config, length: Length) -> Iterator[str]:
    loop, total = cfg.get('train_cfg') or {}, length.epochs or length.iterations
    interval = loop.get('val_interval', 1)
    dynamic = loop.get('dynamic_intervals')
    if cfg.get('val_cfg') and total and interval > total + 1 and not dynamic:  # one more: it is not to be
        unit = 'epochs' if length.epochs else 'iterations'
        cure = as_options({'train_cfg.val_interval': max(1, total // 10)})
        yield f'nothing is evaluated: train_cfg.val_interval is {interval}, and there are {total} {unit}; {_set(cure)}'


def _of_checkpoints(cfg: Config, length: Length) -> Iterator[str]:
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    by_epoch = hook.get('by_epoch', True)
    total, interval = length.in_unit(by_epoch), hook.get('interval', -1)
    if total and interval > total and not hook.get('save_last', True):
        cure = as_options({'default_hooks.checkpoint.interval': max(1, total // 10)})
        yield (
            f'no weights are kept: default_hooks.checkpoint.interval is {interval}, and there are {total} '
            f'{"epochs" if by_epoch else "iterations"}; {_set(cure)}'
        )


def _of_warm_up(cfg: Config, length: Length) -> Iterator[str]:
    for key, scheduler in _schedulers(cfg):
        total, end = length.in_unit(_by_epoch(scheduler)), scheduler.get('end', inf)
        if total and _is_warm_up(scheduler) and _LONGEST_WARM_UP * total < end < inf:
            unit = 'epochs' if _by_epoch(scheduler) else 'iterations'
            ends = max(1, total // 10)
            settings = {f'{key}.end': ends}
            for other, after in _schedulers(cfg):  # what begins as the warm-up ends goes on doing so
                if after.get('begin') == end and _by_epoch(after) == _by_epoch(scheduler):
                    settings[f'{other}.begin'] = ends
            share = f'the first {end} of {total}' if end < total else f'all of the {total}'
            yield f'the learning rate is still warming up in {share} {unit}: {_set(as_options(settings))}'


def _of_decay(cfg: Config, length: Length) -> Iterator[str]:
    decays = [(key, scheduler) for key, scheduler in _schedulers(cfg) if not _is_warm_up(scheduler)]
    totals = [length.in_unit(_by_epoch(scheduler)) for _, scheduler in decays]
    ends = [_end(scheduler, total) for (_, scheduler), total in zip(decays, totals)]
    if not decays or None in totals or None in ends:
        return
    longest = max(range(len(decays)), key=lambda place: ends[place] / totals[place])
    last, total = ends[longest], totals[longest]
    if abs(last / total - 1) <= _TOLERANCE:
        return
    unit = 'epochs' if _by_epoch(decays[longest][1]) else 'iterations'
    settings = {}
    for (key, scheduler), whole in zip(decays, totals):
        settings |= _stretched(key, scheduler, total / last, whole)
    if last > total:
        what = f'the learning rate is lowered over {last} {unit}, and the run ends after {total}'
    else:
        what = f'the learning rate is lowered over {last} {unit}, and is at its lowest in the other {total - last}'
    yield f'{what}: {_set(as_options(settings))}'


def _schedulers(cfg: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schedulers of the learning rate, by their paths in the config."""
    given = cfg.get('param_scheduler') or []
    if isinstance(given, Mapping):
        given = {'param_scheduler': given} if 'type' in given else {}
    else:
        given = {f'param_scheduler.{place}': scheduler for place, scheduler in enumerate(given)}
    for key, scheduler in given.items():
        if not type_name(scheduler).endswith('Momentum'):
            yield key, scheduler


def _by_epoch(scheduler: Mapping[str, Any]) -> bool:
    return scheduler.get('by_epoch', True)


def _is_warm_up(scheduler: Mapping[str, Any]) -> bool:
    if type_name(scheduler) not in _WARM_UPS:
        return False
    return scheduler.get('start_factor', scheduler.get('factor', 1 / 3)) < scheduler.get('end_factor', 1)


def _end(scheduler: Mapping[str, Any], total: int | None) -> int | None:
    """When a scheduler has lowered the rate for the last time; None if that depends on more than its settings."""
    if scheduler.get('end', inf) < inf:
        return scheduler['end']
    if scheduler.get('T_max') or scheduler.get('total_steps'):
        return scheduler.get('begin', 0) + (scheduler.get('T_max') or scheduler['total_steps'])
    if scheduler.get('milestones') and total:  # the last of which may be long before the end of a run
        return max(total, *scheduler['milestones'])
    return None


def _stretched(key: str, scheduler: Mapping[str, Any], factor: float, total: int) -> dict[str, Any]:
    """The settings of a scheduler that is stretched, or squeezed, to end with the run."""
    settings: dict[str, Any] = {}
    for name in _MOMENTS:
        value = scheduler.get(name)
        if name == 'begin' and not _by_epoch(scheduler):
            continue  # as the warm-up has it, which is looked at by itself
        if isinstance(value, (list, tuple)):
            last = total / factor
            if last < max(value) <= total:  # they were set, and the end was forgotten
                continue
            moments = {min(max(1, round(moment * total / max(last, *value))), total - 1) for moment in value}
            settings[f'{key}.{name}'] = sorted(moments)
        elif value and value < inf:
            settings[f'{key}.{name}'] = total if value == _end(scheduler, total) else max(1, round(value * factor))
    return settings


def _set(options: str) -> str:
    return f'--cfg-options {options}'
