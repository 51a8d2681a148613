"""Read the config of a run, with what the command line overrides in it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from .. import cli
from ..errors import UserError, reason


def load_config(
    path: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config file.

    Args:
        path: The file.
        options: Settings to override, by their dotted names: what ``--cfg-options`` is parsed to.
        work_dir: Folder for logs and checkpoints; by default the config's own, or ``work_dirs/CONFIG NAME``.
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.

    Raises:
        UserError: If the file is missing or cannot be parsed, or an override leads nowhere.
    """
    if not Path(path).is_file():
        raise UserError(f'config {path} does not exist; the ones that come with cvt_dense are in configs/')
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is a program and may raise anything
        raise UserError(f'config {path} cannot be read: {type(error).__name__}: {reason(error)}') from error
    if 'default_scope' not in cfg or 'model' not in cfg:
        raise UserError(f'config {path} is not a runnable one: it sets no model or no default_scope')
    if cfg.default_scope in ('mmdet', 'mmseg'):
        cli.check_installed('mmcv', cfg.default_scope)
    if options:
        _check_override_paths(cfg, options)
        try:
            cfg.merge_from_dict(dict(options))
        except Exception as error:  # mmengine raises all kinds for a path that leads nowhere
            raise UserError(f'--cfg-options {", ".join(options)}: {type(error).__name__}: {reason(error)}') from error
    cfg.launcher = launcher
    if work_dir or cfg.get('work_dir') is None:
        cfg.work_dir = work_dir or str(Path('work_dirs') / Path(path).stem)
    return cfg


def _check_override_paths(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse an override that nothing would read: mmengine silently adds unknown keys."""
    known = {*cfg, *inspect.signature(Runner.__init__).parameters}
    for option in options:
        key = option.split('.')[0]
        if key not in known:
            raise UserError(f'--cfg-options {option}: neither the config nor the Runner has a setting {key!r}')
