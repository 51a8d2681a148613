"""What a run's own logs say about it. What they do not say stays unknown: nothing is filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from numbers import Real
from pathlib import Path
from typing import Any

from ..visualization.curves import read_history

#: What logging steps and evaluations hold beside losses and metrics.
_NO_METRIC = re.compile(r'^(iter|epoch|step|time|data_time|memory|lr|base_lr|momentum|grad_norm)$|loss')
#: AP of one class, as COCO's evaluation names it.
_OF_A_CLASS = re.compile(r'_precision$')
#: What mmengine logs right before the first iteration.
_BEGIN = 'Checkpoints will be saved to'
_FORMAT = '%Y/%m/%d %H:%M:%S'
_TIME = re.compile(r'^(\d{4}/\d\d/\d\d \d\d:\d\d:\d\d) - ')
#: Lines of mmengine's report on the environment: what each is called here.
_ENVIRONMENT = {'PyTorch': 'torch', 'Python': 'python', 'GPU number': 'processes'}


@dataclass(frozen=True)
class Logs:
    """What the logs of a run tell.

    Attributes:
        evaluations: Metrics of each evaluation, with the iteration that it was made at as ``'iter'``, in order.
        rate: The highest learning rate.
        duration: Of training, with its evaluations, over all runs that were resumed one from another.
        environment: Versions, the GPU's name (``'gpu'``), and how many processes trained (``'processes'``).
        curves: A picture of the curves.
    """

    evaluations: tuple[dict[str, float], ...] = ()
    rate: float | None = None
    duration: timedelta | None = None
    environment: dict[str, str] = field(default_factory=dict)
    curves: Path | None = None

    @classmethod
    def read(cls, work_dir: Path | None) -> Logs:
        """Read the logs in a work directory; None for no logs at all."""
        if work_dir is None:
            return cls()
        history = read_history(work_dir)
        curves = work_dir / 'curves.png'
        texts = list(_texts(work_dir))
        return cls(
            evaluations=tuple(_evaluations(history)),
            rate=max((rate for entry in history if (rate := entry.get('base_lr', entry.get('lr')))), default=None),
            duration=_duration(texts),
            environment=_environment(texts[-1]) if texts else {},
            curves=curves if curves.is_file() else None,
        )

    def metrics_at(self, iteration: int | None) -> dict[str, float]:
        """What the last evaluation after so many iterations found; empty if there was none."""
        found = [entry for entry in self.evaluations if entry['iter'] == iteration]
        return {name: value for name, value in found[-1].items() if name != 'iter'} if found else {}


def is_main(metric: str) -> bool:
    """Whether a metric is one of the whole data set, and not of a class."""
    return not _OF_A_CLASS.search(metric)


def _evaluations(history: list[dict[str, Any]]) -> Iterator[dict[str, float]]:
    for entry in history:
        if 'loss' in entry:
            continue
        metrics = {k: v for k, v in entry.items() if isinstance(v, Real) and not _NO_METRIC.search(k)}
        if metrics:
            yield {'iter': entry['iter'], **metrics}


def _texts(work_dir: Path) -> Iterator[list[str]]:
    """Lines of each log file of a training run, the oldest first; evaluations of others may lie beside them."""
    for path in sorted(work_dir.glob('*/*.log')):
        lines = path.read_text(errors='replace').splitlines()
        if any('(train)' in line for line in lines):
            yield lines


def _duration(texts: list[list[str]]) -> timedelta | None:
    spans = []
    for lines in texts:
        begun = next((place for place, line in enumerate(lines) if _BEGIN in line), 0)
        ended = max(place for place, line in enumerate(lines) if '(train)' in line or '(val)' in line)
        times = [
            datetime.strptime(found[1], _FORMAT) for line in lines[begun : ended + 1] if (found := _TIME.match(line))
        ]
        spans += [times[-1] - times[0]] if times else []
    return sum(spans, timedelta()) if spans else None


def _environment(lines: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.strip().partition(': ')
        if not colon or not line.startswith('    '):
            continue
        if name in _ENVIRONMENT:
            found.setdefault(_ENVIRONMENT[name], value.split(' ')[0] if name == 'Python' else value)
        elif re.fullmatch(r'GPU [\d,]+', name):
            found.setdefault('gpu', value)
    return found
