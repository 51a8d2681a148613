"""``--log-to``: let a run log to TensorBoard, Weights & Biases, MLflow, ClearML or Aim too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UserError
from ..registry import type_name
from .checkpoint_files import read_ahead
from .processes import is_first
from .run_checkpoints import Start

#: By the name of the package, our backend for it, and where its log is looked at.
BACKENDS = {
    'tensorboard': ('TensorboardBackend', 'tensorboard --logdir {work_dir}'),
    'wandb': ('WandbBackend', 'wandb.ai, and {work_dir}/wandb'),
    'mlflow': (
        'MLflowBackend',
        'MLFLOW_TRACKING_URI, or else mlflow ui --backend-store-uri sqlite:///{work_dir}/mlflow/mlflow.db',
    ),
    'clearml': ('ClearMLBackend', 'the server of its configuration'),
    'aim': ('AimBackend', 'aim up --repo {work_dir}'),
}
_OURS = {backend for backend, _ in BACKENDS.values()}


def log_to(cfg: Config, names: Sequence[str]) -> None:
    """Let a run write its scalars and pictures to other logs too, and say where these are.

    Args:
        cfg: Changed in place. A backend for one of these that it has already is left as it is.
        names: Keys of :data:`BACKENDS`.

    Raises:
        UserError: If a package is not installed.
    """
    for name in names:
        if find_spec(name) is None:
            raise UserError(f'--log-to {name} needs a package that is not installed: pip install {name}')
    default = ConfigDict(type='Visualizer', vis_backends=[ConfigDict(type='LocalVisBackend')])
    cfg.visualizer = cfg.get('visualizer') or default
    backends = _backends(cfg)
    for name in dict.fromkeys(names):
        backend, place = BACKENDS[name]
        if not {type_name(entry) for entry in backends} & {backend, backend.replace('Backend', 'VisBackend')}:
            backends.append(ConfigDict(type=backend))
        if is_first(cfg.launcher if 'launcher' in cfg else 'none'):
            print(f'logs to {name} too: {place.format(work_dir=cfg.work_dir)}', file=sys.stderr)
    cfg.visualizer.vis_backends = backends
    # Else AP is drawn by the epoch, over the losses' iterations.
    cfg.default_hooks = cfg.get('default_hooks') or ConfigDict()
    hooks = cfg.default_hooks
    if type_name(hooks.setdefault('logger', ConfigDict(type='LoggerHook'))) == 'LoggerHook':
        hooks.logger.setdefault('log_metric_by_epoch', False)


def continue_logs(cfg: Config, start: Start) -> None:
    """Let a run that is resumed go on with the logs of its work directory.

    Args:
        cfg: Changed in place.
        start: What it starts from. How far one from a web server is, is not known: its logs begin anew.
    """
    ours = [entry for entry in _backends(cfg) if type_name(entry) in _OURS]
    if start.resume and ours and '://' not in start.path:
        iteration = (read_ahead(start.path).get('meta') or {}).get('iter', 0)
        for entry in ours:
            entry['resumed_at'] = iteration


def leave_out_logs(cfg: Config) -> None:
    """Take the logs out of a config: an evaluation would have nothing to add, and who gets it has others, or none."""
    if cfg.get('visualizer'):
        cfg.visualizer.vis_backends = [entry for entry in _backends(cfg) if type_name(entry) not in _OURS]


def _backends(cfg: Config) -> list[Any]:
    """The visualizer's backends; a config may have one of them by itself."""
    given = (cfg.get('visualizer') or {}).get('vis_backends') or []
    return [given] if isinstance(given, dict) else list(given)
