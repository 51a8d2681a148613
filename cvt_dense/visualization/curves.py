"""Curves of training, from the scalars that mmengine's LocalVisBackend writes into the work directory."""

from __future__ import annotations

import json
import math
import re
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Scalars = list[dict[str, Any]]

# Evaluation also logs times, each class, and AP by IoU and by size: too many for one plot.
_NOT_DRAWN = re.compile(r'time$|_precision$|^step$|^iter$|mAP_(\d+|s|m|l)$|AR_[sml]@')
_AUXILIARY = re.compile(r'(^|\.)d\d+\.')  # losses of a DETR's inner decoder layers repeat those of the last one
_STYLE = {'axes.grid': True, 'grid.alpha': 0.3, 'axes.spines.top': False, 'axes.spines.right': False}
_SMOOTH_FROM = 100  # points; from there on a running mean over a fiftieth of them to each side is drawn


def read_history(work_dir: str | Path) -> Scalars:
    """Read what was logged in a work directory, over all runs that were resumed one from another.

    Dropped is what an interrupted run logged after the checkpoint that the next run resumed from, and what was logged
    before a run that started afresh.

    Where evaluations are logged by the iteration (``log_metric_by_epoch=False`` of mmengine's ``LoggerHook``), that is
    theirs. Where they are logged by the epoch, theirs is the end of that epoch, whose length shows once steps of two
    epochs are logged; before, it is the iteration of the step that was logged last.

    Args:
        work_dir: Work directory of the run; there may be nothing in it yet.

    Returns:
        One dict per logging step and evaluation, in order, each with the number of training iterations as ``'iter'``.
    """
    history: Scalars = []
    by_epoch: list[_Evaluation] = []
    for path in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):  # folders are named after the time
        run = _read(path)
        first = next((entry['iter'] for entry in run if 'iter' in entry), math.inf)
        history = [entry for entry in history if entry['iter'] < first]
        evaluations = _evaluations(run, history)
        if all(evaluation.is_by_iteration for evaluation in evaluations):
            for evaluation in evaluations:
                evaluation.entry['iter'] = evaluation.entry['step']
            if run and 'loss' not in run[0]:  # resumed shortly before an evaluation that was made already
                again = run[0]['iter']
                history = [entry for entry in history if entry['iter'] < again + ('loss' in entry)]
        else:
            for evaluation in evaluations:
                evaluation.entry['iter'] = evaluation.earliest
            by_epoch += evaluations
        history += run
    length = _epoch_length(history) or 0
    for entry, earliest, latest, _ in by_epoch:
        entry['iter'] = max(earliest, min(entry.get('step', 0) * length, latest))
    return history


class _Evaluation(NamedTuple):
    """One that was logged, the iterations between which it was made, and whether its step may be one of them."""

    entry: dict[str, Any]
    earliest: int
    latest: float
    is_by_iteration: bool


def _evaluations(run: Scalars, history: Scalars) -> list[_Evaluation]:
    """The evaluations of a run that goes on from a history."""
    found = []
    earliest = history[-1]['iter'] if history else 0
    # Before the first step that it logs, a resumed run may be anywhere, but has seen more iterations than epochs.
    least = min(earliest, max((entry.get('epoch', 0) for entry in history), default=0) + 2)
    for i, entry in enumerate(run):
        if 'iter' in entry:
            least = earliest = entry['iter']
        else:
            latest = next((step['iter'] for step in run[i:] if 'iter' in step), math.inf) - 1
            found.append(_Evaluation(entry, earliest, latest, least <= entry.get('step', -1) <= latest))
    return found


def _epoch_length(scalars: Scalars) -> int | None:
    """How many iterations an epoch has: as many as lie between the first steps that are logged in it and the next."""
    first: dict[int, int] = {}
    for entry in scalars:
        if 'epoch' in entry:
            first.setdefault(entry['epoch'], entry['iter'])
    epochs = sorted(first)
    # A run that was resumed in the middle of an epoch may log that one late.
    lengths = [(first[later] - first[one]) / (later - one) for one, later in pairwise(epochs)]
    return round(median(lengths)) if lengths else None


def _read(path: Path) -> Scalars:
    entries = []
    for line in path.read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:  # a run that is killed leaves half a line
            continue
    return entries


def last_metric(scalars: Scalars, name: str) -> float:
    """The value that a metric had at the last evaluation.

    Raises:
        KeyError: If the run never evaluated it.
    """
    values = [entry[name] for entry in scalars if name in entry]
    if not values:
        raise KeyError(f'the run logged no {name}')
    return values[-1]


def plot_curves(scalars: Scalars, out: str | Path) -> None:
    """Draw losses, learning rate and evaluation metrics over iterations into a PNG.

    Args:
        scalars: As :func:`read_history` returns them.
        out: The PNG to write.
    """
    steps = [entry for entry in scalars if 'loss' in entry]
    evaluations = [entry for entry in scalars if 'loss' not in entry]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(13, 4.5), layout='constrained')
        axes = figure.subplot_mosaic([['loss', 'metric'], ['lr', 'metric']], height_ratios=[4, 1])
        _plot_losses(axes['loss'], steps)
        for below in ('lr', 'metric'):
            axes[below].sharex(axes['loss'])
        axes['lr'].plot(*_points(steps, 'lr'), color='gray', marker=_marker(steps))
        axes['lr'].set(xlabel='iteration', ylabel='rate')
        axes['lr'].ticklabel_format(axis='y', scilimits=(0, 0))
        _plot_metrics(axes['metric'], evaluations)
        figure.savefig(out, dpi=110)


def _plot_losses(axes: Axes, steps: Scalars) -> None:
    names = {name for entry in steps for name in entry if 'loss' in name and not _AUXILIARY.search(name)}
    for number, name in enumerate(sorted(names, key=lambda name: (name != 'loss', name))):
        iterations, values = _points(steps, name)
        line = dict(color=f'C{number}', linestyle='-' if number < 10 else '--') if number else dict(color='black')
        if len(values) >= _SMOOTH_FROM:
            axes.plot(iterations, values, alpha=0.2, linewidth=1, **line)
            values = _smoothed(values, len(values) // 50)
        axes.plot(iterations, values, label=name, linewidth=1.5 if number else 2.5, marker=_marker(steps), **line)
    axes.set(title='training losses', yscale='log')  # parts of a loss differ by orders of magnitude
    axes.tick_params(labelbottom=False)
    _add_legend(axes)


def _marker(steps: Scalars) -> str | None:
    """Of few points: a single one makes no line."""
    return '.' if len(steps) < 10 else None


def _plot_metrics(axes: Axes, evaluations: Scalars) -> None:
    for name in sorted({name for entry in evaluations for name in entry if not _NOT_DRAWN.search(name)}):
        iterations, values = _points(evaluations, name)
        axes.plot(iterations, values, marker='o', label=f'{name}: {values[-1]:.4g}')
    axes.set(xlabel='iteration', title='evaluation')
    axes.set_ylim(bottom=0)
    _add_legend(axes)


def _points(scalars: Scalars, name: str) -> tuple[list[int], list[float]]:
    """The iterations at which something was logged, and its values."""
    found = [(entry['iter'], entry[name]) for entry in scalars if name in entry]
    return [iteration for iteration, _ in found], [value for _, value in found]


def _smoothed(values: list[float], reach: int) -> np.ndarray:
    """Means over neighbours up to ``reach`` away, fewer at both ends."""
    window = np.ones(2 * reach + 1)
    return np.convolve(values, window, 'same') / np.convolve(np.ones(len(values)), window, 'same')


def _add_legend(axes: Axes) -> None:
    """Add a legend beside the plot, where it covers no curve."""
    if axes.lines:
        axes.locator_params(axis='x', nbins=6)
        axes.legend(loc='upper left', bbox_to_anchor=(1, 1), fontsize='small', frameon=False)
