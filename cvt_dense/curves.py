"""Curves of a training run, from the scalars that mmengine's LocalVisBackend writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

#: Metrics that are drawn where a run has them, in the units that the toolkits log (AP in 0..1, mIoU in percent).
METRICS = ('coco/segm_mAP', 'coco/bbox_mAP', 'mIoU')


def read_scalars(work_dir: str | Path, timestamp: str) -> list[dict[str, Any]]:
    """Read what a run logged: one dict per logging step, in the order of writing.

    Args:
        work_dir: Work directory of the run.
        timestamp: Name of the run's own folder below it (``Runner.timestamp``).
    """
    path = Path(work_dir) / timestamp / 'vis_data' / 'scalars.json'
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def last_metric(scalars: list[dict[str, Any]], name: str) -> float:
    """The value that a metric had at the last evaluation.

    Raises:
        KeyError: If the run never evaluated it.
    """
    values = [entry[name] for entry in scalars if name in entry]
    if not values:
        raise KeyError(f'the run logged no {name}')
    return values[-1]


def plot_curves(scalars: list[dict[str, Any]], out: str | Path) -> None:
    """Draw the losses (left) and the evaluation metrics (right) over iterations into a PNG.

    Args:
        scalars: As :func:`read_scalars` returns them.
        out: The PNG to write.
    """
    losses = [entry for entry in scalars if 'loss' in entry]
    names = sorted({name for entry in losses for name in entry if 'loss' in name})
    with matplotlib.rc_context({'axes.grid': True, 'grid.alpha': 0.3, 'axes.spines.top': False}):
        figure = Figure(figsize=(11, 4), layout='constrained')
        loss_axes, metric_axes = figure.subplots(1, 2)
        for name in names:
            points = [(entry.get('iter', entry['step']), entry[name]) for entry in losses if name in entry]
            loss_axes.plot(*zip(*points), label=name, linewidth=2 if name == 'loss' else 1)
        loss_axes.set(xlabel='iteration', ylabel='loss', title='training losses')
        loss_axes.legend(fontsize='small')
        for name in METRICS:
            points = _metric_points(scalars, name)
            if points:
                metric_axes.plot(*zip(*points), marker='o', label=name)
        metric_axes.set(xlabel='iteration', title='evaluation')
        metric_axes.set_ylim(bottom=0)
        if metric_axes.lines:
            metric_axes.legend(fontsize='small')
        figure.savefig(out, dpi=110)


def _metric_points(scalars: list[dict[str, Any]], name: str) -> list[tuple[int, float]]:
    """A metric over the iteration at which it was taken: that of the training step logged last before it."""
    points, iteration = [], 0
    for entry in scalars:
        iteration = entry.get('iter', iteration)
        if name in entry:
            points.append((iteration, entry[name]))
    return points
