"""Read the config of a run, with what the command line overrides in it."""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.config.lazy import LazyObject
from mmengine.runner import Runner

from .. import cli
from ..errors import UserError, reason
from ..registry import module_name, type_name
from .channels import fill_in_channels
from .processes import is_first

#: Settings that mmengine looks up in the config as a whole; the others are arguments of its Runner.
_LOOKED_UP = (
    'activation_checkpointing',
    'compile',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'init_weights_for_test_or_val',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
)
#: Hooks that every Runner has unless the config sets them to None.
_OWN_HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')

#: Files of ``configs/_base_/`` that have the parts of a run, by their folder and toolkit.
_EXAMPLES = {
    'datasets': {'mmdet': 'coco_instance.py', 'mmseg': 'ade20k.py'},
    'schedules': {'mmdet': 'adamw_1x.py', 'mmseg': 'adamw_160k.py'},
}
#: What mmengine says where a config has a dict for what is none in its base.
_NO_DICT_IN_BASE = re.compile(r"(?s)^(\w+)=.* cannot inherit from base because .* is of type <class '([\w.]+)'>")


def load_config(
    path: str | os.PathLike[str],
    options: Mapping[str, Any] | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
) -> Config:
    """Read a config file, and fill in channels for the backbone's maps (:mod:`cvt_dense.engine.channels`).

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
        raise _unreadable(path, error) from error
    for name in [name for name, value in cfg.items() if isinstance(value, (FunctionType, ModuleType))]:
        cfg.pop(name)  # no setting, and nothing that can be written down; new-style configs may have them
    _restore_classes(cfg)
    if not cfg.get('model'):
        raise UserError(f'config {path} is not a runnable one: it sets no model')
    cfg.default_scope = cfg.get('default_scope') or scope_of(cfg.model)
    if cfg.default_scope is None:
        raise UserError(f"config {path} is not a runnable one: it sets no default_scope, such as 'mmdet'")
    if cfg.default_scope in ('mmdet', 'mmseg'):
        cli.check_installed('mmcv', cfg.default_scope)
    if options:
        _check_override_paths(cfg, options)
        try:
            cfg.merge_from_dict(dict(options))
        except Exception as error:  # mmengine raises all kinds for a path that leads nowhere
            raise UserError(f'--cfg-options {", ".join(options)}: {type(error).__name__}: {reason(error)}') from error
    cfg.launcher = launcher
    for line in fill_in_channels(cfg):
        if is_first(launcher):
            print(f'note: {line}', file=sys.stderr)
    if work_dir or cfg.get('work_dir') is None:
        cfg.work_dir = work_dir or str(Path('work_dirs') / Path(path).stem)
    return cfg


def _unreadable(path: str | os.PathLike[str], error: Exception) -> UserError:
    """What is wrong with a config file, in a line."""
    found = _NO_DICT_IN_BASE.match(str(error)) if isinstance(error, TypeError) else None
    if not found:
        return UserError(f'config {path} cannot be read: {type(error).__name__}: {reason(error)}')
    name, kind = found.groups()
    in_base = 'switched off (None)' if kind == 'NoneType' else f'a {kind}'
    cure = f'leave {name} out' if kind == 'NoneType' else f'write {name} as the base has it'
    return UserError(
        f'config {path} cannot be read: it merges a dict into {name}, which is {in_base} in its base',
        f'{cure}, or begin the dict with _delete_=True if it is complete',
    )


def _check_override_paths(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse an override that nothing would read: mmengine silently adds unknown keys."""
    known = {*cfg, *inspect.signature(Runner.__init__).parameters, *_LOOKED_UP}
    for option in options:
        key = option.split('.')[0]
        if key not in known:
            raise UserError(f'--cfg-options {option}: neither the config nor the Runner has a setting {key!r}')


def _restore_classes(node: Any) -> None:
    """Make classes and functions of ``type`` entries that are import paths, as new-style configs are dumped.

    Registries find such a path, but not all that toolkits build is in a registry (``mmcv.ops.nms``, ``RoIAlign``).
    """
    if isinstance(node, (list, tuple)):
        for entry in node:
            _restore_classes(entry)
    elif isinstance(node, (dict, Config)):
        kind = node.get('type')
        module, _, name = kind.rpartition('.') if isinstance(kind, str) else ('', '', '')
        if module and '.' in module and find_spec(module.partition('.')[0]):
            with suppress(ImportError):  # the registry says what is wrong with it
                if hasattr(import_module(module), name):
                    node['type'] = LazyObject(module, name)
        for entry in node.values():
            _restore_classes(entry)


def scope_of(model: Mapping[str, Any]) -> str | None:
    """The toolkit that a model is of, by where its class is: new-style configs set no default scope."""
    package = module_name(model).partition('.')[0]
    return package if package in ('mmdet', 'mmseg', 'mmpretrain') else None


def check_complete(cfg: Config, split: str) -> None:
    """Check that a config sets all that training, or testing, is made of.

    Args:
        cfg: Config of the run.
        split: ``'train'`` or ``'test'``.

    Raises:
        UserError: If something is missing; the message names it.
    """
    needed = [f'{split}_dataloader', f'{split}_cfg', 'optim_wrapper' if split == 'train' else 'test_evaluator']
    if split == 'train' and cfg.get('val_cfg'):
        needed += ['val_dataloader', 'val_evaluator']
    for name in needed:
        if not cfg.get(name):
            kind = 'schedules' if name in ('train_cfg', 'optim_wrapper') else 'datasets'
            file = _EXAMPLES[kind]['mmseg' if cfg.get('default_scope') == 'mmseg' else 'mmdet']
            raise UserError(
                f'the config sets no {name}, which {split}ing needs', f'copy it from configs/_base_/{kind}/{file}'
            )


def hooks_of(cfg: Config) -> ConfigDict:
    """The ``default_hooks`` of a config, which are put there if it has none."""
    if not cfg.get('default_hooks'):
        cfg.default_hooks = ConfigDict()
    return cfg.default_hooks


def add_hook(cfg: Config, name: str) -> None:
    """Add a custom hook to a config, unless it has one of that type: a dumped config has those that tools added."""
    hooks = list(cfg.get('custom_hooks') or [])
    if not any(type_name(hook) == name for hook in [*hooks, *hooks_of(cfg).values()]):
        hooks.append(ConfigDict(type=name))
    cfg.custom_hooks = hooks


def leave_out_hooks(cfg: Config) -> None:
    """Leave out the default hooks that are set to None, which mmengine takes from its own alone."""
    hooks = hooks_of(cfg)
    for name in [name for name, hook in hooks.items() if hook is None and name not in _OWN_HOOKS]:
        del hooks[name]
