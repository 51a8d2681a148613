"""Where a config's data are: a missing folder is reported before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UserError, reason
from .settings import DataSettings, datasets_by_path


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the data that a run will read exist.

    Args:
        cfg: Config of the run.
        splits: Those of ``train``, ``val`` and ``test`` that are used.

    Raises:
        UserError: If a data root, an annotation file or an image folder is missing or empty.
    """
    for split in splits:
        loader, settings = cfg.get(f'{split}_dataloader'), DataSettings(cfg, split)
        for dataset in datasets_in(loader.get('dataset') if loader else None):
            for what, path in ((what, path) for what, paths in needed_files(dataset).items() for path in paths):
                cure = _cure(what, dataset, settings)
                try:
                    is_there, is_empty = path.exists(), path.is_dir() and next(path.iterdir(), None) is None
                except OSError as error:  # permissions, names that are too long, disks that are gone
                    raise UserError(
                        f'{what} {path} cannot be read: {type(error).__name__}: {reason(error)}', cure
                    ) from error
                if not is_there:
                    raise UserError(f'{what} {path} does not exist', cure)
                if is_empty:
                    raise UserError(f'{what} {path} is empty', cure)


def _cure(what: str, dataset: ConfigDict, settings: DataSettings) -> str:
    """What to do about a path where nothing is: the config may say what, of its data as a whole."""
    hint = settings.cfg.get('data_hint')
    if what == 'data root':
        return hint or settings.change('data_root', 'FOLDER', everywhere=True)
    key, place = ('ann_file', 'FILE') if what == 'annotation file' else (f'data_prefix.{what.split()[0]}', 'FOLDER')
    change = settings.change(key, place, dataset)
    return f'{hint if hint and change.startswith("--cfg-options") else "put it there"}, or {change}'


def datasets_in(dataset: ConfigDict | None) -> Iterator[ConfigDict]:
    """The innermost datasets of one that may wrap or join others."""
    return (settings for _, settings in datasets_by_path(dataset))


def needed_files(dataset: ConfigDict) -> dict[str, list[Path]]:
    """What a dataset reads from this machine's disks, by what it is, outermost first.

    What mmengine reads from elsewhere, by the scheme of a path or by ``backend_args``, is not looked for.

    Raises:
        UserError: If something is no path.
    """
    if has_backend(dataset.get('backend_args')) or any(map(reads_elsewhere, dataset.get('pipeline') or ())):
        return {}
    root, prefixes = dataset.get('data_root') or '', dataset.get('data_prefix') or {}
    if not isinstance(root, (str, os.PathLike)):
        raise UserError(f'data_root is {root!r}', 'it has to be the path of a folder')
    if not isinstance(prefixes, Mapping):
        raise UserError(f'data_prefix is {prefixes!r}', 'it has to be a dict of folders by what is in them')
    parts = {'annotation file': _names('ann_file', dataset.get('ann_file'))}
    parts |= {f'{kind} folder': _names(f'data_prefix.{kind}', value) for kind, value in prefixes.items()}
    joined = {what: [os.path.join(root, name) for name in names if name] for what, names in parts.items()}
    needed = {what: [Path(path) for path in paths if '://' not in path] for what, paths in joined.items() if paths}
    named = [path for paths in joined.values() for path in paths]
    if '://' in str(root) or (named and not any(path.startswith(str(root)) for path in named)):
        return needed  # nothing is read below the root
    return {'data root': [Path(root)], **needed}


def _names(key: str, value: Any) -> list[str]:
    """A path of a dataset's settings, or several; mmengine's data sets take one, others' may take lists."""
    names = list(value) if isinstance(value, (list, tuple)) else [value or '']
    if not all(isinstance(name, (str, os.PathLike)) for name in names):
        raise UserError(f'{key} is {value!r}', 'it has to be a path')
    return [str(name) for name in names]


def has_backend(backend_args: Mapping[str, Any] | None) -> bool:
    """Whether mmengine is told to read files with something other than this machine's file system."""
    return (backend_args or {}).get('backend', 'local') not in ('local', 'disk')


def reads_elsewhere(step: Any) -> bool:
    """Whether a step of a pipeline, or its config, reads files that are not on this machine's disks."""
    arguments = step.get('backend_args') if isinstance(step, Mapping) else getattr(step, 'backend_args', None)
    return has_backend(arguments)
