"""Find what is to be published: a run's config, its checkpoint, and the folder of its logs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..engine.run_checkpoints import newest_checkpoint
from ..errors import UserError


@dataclass(frozen=True)
class Source:
    """Files of a run.

    Attributes:
        config: Config file.
        checkpoint: Checkpoint file.
        work_dir: Folder of the run's logs; None if there are none.
    """

    config: Path
    checkpoint: Path
    work_dir: Path | None


def find_source(given: str, checkpoint: str | None = None) -> Source:
    """Find the files of a run.

    Args:
        given: The config, or the run's work directory, or a checkpoint in it. Where the config is not named, it is the
            one that the run left in its work directory.
        checkpoint: The checkpoint; by default the best one of the work directory if it has one, else the newest.

    Raises:
        UserError: If one of them is not there, or it is not clear which one is meant.
    """
    path = Path(given)
    if not path.exists():
        raise UserError(f'{given} does not exist; give a config and a checkpoint, or the work directory of a run')
    if checkpoint is not None and not Path(checkpoint).is_file():
        raise UserError(f'checkpoint {checkpoint} does not exist, or is no file')
    if path.is_dir():
        chosen = Path(checkpoint) if checkpoint else _chosen_checkpoint(path)
        return Source(_config_in(path), chosen, _with_logs(path))
    if path.suffix == '.py':
        if checkpoint is None:
            raise UserError(f'{given} is a config: name a checkpoint after it, or give the work directory of the run')
        return Source(path, Path(checkpoint), _with_logs(Path(checkpoint).parent))
    if checkpoint is not None:
        raise UserError(f'{given} is neither a config (.py) nor a folder, so no checkpoint can follow it')
    return Source(_config_in(path.parent), path, _with_logs(path.parent))


def _config_in(folder: Path) -> Path:
    none = f'{folder} holds no config that a run left there: name the config first, then the checkpoint'
    return _only(folder.glob('*.py'), none, 'name the config that is meant, then the checkpoint')


def _chosen_checkpoint(work_dir: Path) -> Path:
    best = list(work_dir.glob('best_*.pth'))
    newest = None if best else newest_checkpoint(work_dir)
    found = best if newest is None else [Path(newest)]
    return _only(found, f'{work_dir} holds no checkpoint', 'name the one that is meant, after the folder')


def _only(paths: Iterable[Path], none: str, several: str) -> Path:
    """The one file that there is, or an error that says what to do if there is none, or more than one."""
    found = sorted(paths)
    if not found:
        raise UserError(none)
    if len(found) > 1:
        raise UserError(f'{found[0].parent} holds {", ".join(path.name for path in found)}: {several}')
    return found[0]


def _with_logs(folder: Path) -> Path | None:
    return folder if any(folder.glob('*/vis_data/scalars.json')) else None
