"""Checkpoints that runs have written: to resume, to evaluate, to predict with."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ..checkpoints.compare import compare
from ..errors import CheckpointError, UserError
from .checkpoint_files import read_ahead, read_checkpoint
from .interruption import INTERRUPTED


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint that a run is to start from exists.

    Raises:
        UserError: If there is no such file.
    """
    if '://' not in path and not Path(path).is_file():
        raise UserError(f'checkpoint {path} {"is a folder, not a file" if Path(path).is_dir() else "does not exist"}')


def set_resume(cfg: Config, resume: str) -> None:
    """Resume a run from a checkpoint.

    Args:
        cfg: Changed in place.
        resume: A checkpoint file, or ``'auto'`` for the newest one in the work directory (a new start if there is
            none).

    Raises:
        UserError: If the file does not exist, or the work directory has checkpoints and none of them can be read.
    """
    checkpoint: str | None = resume
    if resume == 'auto':
        checkpoint = _newest_checkpoint(Path(cfg.work_dir))
        if checkpoint is None:
            print(f'nothing to resume in {cfg.work_dir}: starting from scratch', file=sys.stderr)
            return
    check_checkpoint(checkpoint)
    cfg.resume = True
    cfg.load_from = checkpoint
    if cfg.get('randomness', {}).get('seed') is None and '://' not in checkpoint:
        # Drawn at random by the first run; samplers are built before mmengine would look into the checkpoint.
        seed = read_ahead(checkpoint).get('meta', {}).get('seed')
        cfg.randomness = dict(cfg.get('randomness', {}), seed=seed)
    # The checkpoint overwrites every weight, so the pre-trained ones need not be at hand any more.
    if 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None


def _newest_checkpoint(work_dir: Path) -> str | None:
    """The newest whole checkpoint of a work directory, ``None`` if there never was one.

    mmengine notes the newest one in a file of its own. A run that was killed between the two writes, or a folder that
    was moved since, leaves a note that is empty or leads nowhere; then the checkpoints themselves are tried.
    """
    note = work_dir / 'last_checkpoint'
    noted = note.read_text().strip() if note.is_file() else ''
    if '://' in noted:
        return noted
    numbered = {path: re.fullmatch(r'(?:epoch|iter)_(\d+)', path.stem) for path in work_dir.glob('*.pth')}
    numbers = {path: int(match[1]) for path, match in numbered.items() if match}
    newest_first = sorted(numbers, key=numbers.__getitem__, reverse=True)
    if (work_dir / INTERRUPTED).is_file():  # the next ordinary one replaces it
        newest_first.insert(0, work_dir / INTERRUPTED)
    for path in [Path(noted), *newest_first] if noted and Path(noted).is_file() else newest_first:
        try:
            read_ahead(path)
        except CheckpointError as error:
            print(f'skipped while looking for a checkpoint to resume from: {error}', file=sys.stderr)
        else:
            return str(path)
    if newest_first:
        raise UserError(f'no checkpoint in {work_dir} can be read; start again in another folder with --work-dir')
    return noted or None


def check_weights(model: nn.Module, path: str, prefix: str = '', resume: bool = False) -> None:
    """Check that a local checkpoint of a training run covers a model; mmengine itself would only warn.

    Args:
        model: The one that is going to load it.
        path: The checkpoint. One from a web server is left to mmengine.
        prefix: Look at parameters below this only: ``'backbone.'`` where heads may be new.
        resume: The run goes on from it, for which it has to hold more than weights.

    Raises:
        UserError: If tensors are missing, misshapen or not finite; the message names the first.
        CheckpointError: If the checkpoint cannot be read.
    """
    if '://' not in path:
        _check_content(model, read_ahead(path), path, prefix, resume)


def _check_content(
    model: nn.Module, content: Mapping[str, Any], path: str, prefix: str = '', resume: bool = False
) -> None:
    """As :func:`check_weights`, for a checkpoint that has been read."""
    lacking = next((part for part in ('meta', 'optimizer') if part not in content), None)
    if resume and lacking:
        raise UserError(
            f"checkpoint {path} has no '{lacking}', so no run can go on from it; a new one can start from its weights: "
            f'--cfg-options load_from={path}'
        )
    tensors = content.get('state_dict', content)
    expected = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    mismatch = compare(tensors, expected)
    problems = (
        ('lacks', mismatch.missing),
        ('has other shapes for', mismatch.misshapen),
        ('has values that are not finite in', mismatch.infinite),
    )
    for what, found in problems:
        if found:
            more = f' and {len(found) - 1} more' if len(found) > 1 else ''
            raise UserError(f'checkpoint {path} does not fit this config: it {what} {found[0]}{more}')


def load_weights(model: nn.Module, path: str) -> Mapping[str, Any]:
    """Load a local checkpoint that covers a model, and report tensors that the model does not have.

    Returns:
        What else the checkpoint holds.

    Raises:
        UserError: If it does not cover the model.
        CheckpointError: If it cannot be read.
    """
    content = read_checkpoint(path)
    _check_content(model, content, path)
    # Only surplus tensors remain: nothing is missing, which was checked above.
    unused = model.load_state_dict(content.get('state_dict', content), strict=False).unexpected_keys
    if unused:
        print(f'note: {len(unused)} tensors of {path} are not in the model and unused: {unused[0]}, …', file=sys.stderr)
    return content
