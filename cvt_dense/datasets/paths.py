"""Where a config's data are: a missing folder is reported before anything is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from ..errors import UserError


def check_data(cfg: Config, splits: tuple[str, ...]) -> None:
    """Check that the data that a run will read exist.

    Args:
        cfg: Config of the run.
        splits: Those of ``train``, ``val`` and ``test`` that are used.

    Raises:
        UserError: If a data root, an annotation file or an image folder is missing or empty.
    """
    hint = cfg.get('data_hint', 'set data_root in the config')
    for split in splits:
        loader = cfg.get(f'{split}_dataloader')
        for dataset in datasets_in(loader.dataset if loader else None):
            for what, path in needed_files(dataset):
                if not path.exists():
                    raise UserError(f'{what} {path} does not exist; {hint}')
                if path.is_dir() and next(path.iterdir(), None) is None:
                    raise UserError(f'{what} {path} is empty; {hint}')


def datasets_in(dataset: ConfigDict | None) -> Iterator[ConfigDict]:
    """The innermost datasets of one that may wrap or join others."""
    if dataset is None:
        return
    inner = dataset.get('dataset') or dataset.get('datasets')
    if inner is None:
        yield dataset
        return
    for entry in inner if isinstance(inner, (list, tuple)) else [inner]:
        yield from datasets_in(entry)


def needed_files(dataset: ConfigDict) -> list[tuple[str, Path]]:
    """What a dataset reads on this machine: what each is, and where, outermost first.

    What is elsewhere (``s3://…``, or by a backend of its own) is for mmengine to find.
    """
    root = str(dataset.get('data_root') or '')
    entries: list[tuple[str, Any]] = [('data root', ''), ('annotation file', dataset.get('ann_file'))]
    for kind, given in (dataset.get('data_prefix') or {}).items():
        entries += [(f'{kind} folder', path) for path in (given if isinstance(given, (list, tuple)) else [given])]
    if (dataset.get('backend_args') or {}).get('backend', 'local') != 'local':
        return []
    joined = [(what, os.path.join(root, str(path))) for what, path in entries if path or what == 'data root']
    return [(what, Path(path)) for what, path in joined if '://' not in path]
