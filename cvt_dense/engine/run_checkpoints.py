"""Checkpoints that runs have written: to resume, to evaluate, to predict with."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from ..checkpoints.compare import compare
from ..errors import CheckpointError, UserError
from .checkpoint_files import read_ahead, read_checkpoint
from .interruption import INTERRUPTED
from .processes import unwrapped


def check_checkpoint(path: str) -> None:
    """Check that a checkpoint that a run is to start from exists.

    Raises:
        UserError: If there is no such file.
    """
    if '://' not in path and not Path(path).is_file():
        raise UserError(f'checkpoint {path} {"is a folder, not a file" if Path(path).is_dir() else "does not exist"}')


@dataclass(frozen=True)
class Start:
    """The checkpoint that a run starts from.

    Attributes:
        path: A file, or its address; None to start from ``init_cfg``.
        resume: Go on from it, for which it has to hold more than weights.
        whole: It has to hold all weights; else those of the backbone, since heads may be for other classes.
    """

    path: str | None
    resume: bool = False
    whole: bool = False


def find_start(cfg: Config, resume: str | None) -> Start:
    """Find what a training run starts from.

    Args:
        cfg: Its seed is set to that of the run which is resumed, if it sets none.
        resume: A checkpoint file, or ``'auto'`` for the newest one in the work directory (a new start if there is
            none); None for what the config says by ``resume`` and ``load_from``.

    Raises:
        UserError: If the file does not exist, or the work directory has checkpoints and none of them can be read.
    """
    checkpoint = resume
    if checkpoint is None and cfg.get('resume'):
        checkpoint = cfg.get('load_from') or 'auto'
    if checkpoint == 'auto':
        checkpoint = newest_checkpoint(Path(cfg.work_dir))
        if checkpoint is None:
            otherwise = f'starting from {cfg.load_from}' if cfg.get('load_from') else 'starting from scratch'
            print(f'nothing to resume in {cfg.work_dir}: {otherwise}', file=sys.stderr)
    if checkpoint is None:
        if cfg.get('load_from'):
            check_checkpoint(cfg.load_from)
        return Start(cfg.get('load_from'))
    check_checkpoint(checkpoint)
    if (cfg.get('randomness') or {}).get('seed') is None and '://' not in checkpoint:
        # Drawn at random by the first run; samplers are built before mmengine would look into the checkpoint.
        seed = (read_ahead(checkpoint).get('meta') or {}).get('seed')
        cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    return Start(checkpoint, resume=True, whole=True)


def start_from(runner: Runner, start: Start) -> None:
    """Let a Runner begin with a checkpoint, after checking that it fits: mmengine itself would only warn.

    Not by its config, which goes into the work directory: who trains from that again wants to begin anew.

    Raises:
        UserError: If tensors are missing, misshapen or not finite; the message names the first.
        CheckpointError: If the checkpoint cannot be read.
    """
    runner._load_from, runner._resume = start.path, start.resume
    if start.path is None:
        return
    model = runner.model
    if not isinstance(model, nn.Module):  # a FlexibleRunner builds it later; here for its names and shapes
        model = MODELS.build(copy.deepcopy(model))
    check_weights(unwrapped(model), start.path, start.whole, start.resume)
    if start.whole:  # then the pre-trained weights need not be at hand any more
        _drop_init_cfg(runner.model)


def _drop_init_cfg(model: Any) -> None:
    """Let a model's backbone, built or as a config, be initialised by nothing that it would have to load."""
    if isinstance(model, nn.Module):
        for name, module in model.named_modules():
            if name.rpartition('.')[2] == 'backbone' and hasattr(module, 'init_cfg'):
                module.init_cfg = None
    elif 'backbone' in model:
        model['backbone']['init_cfg'] = None


def newest_checkpoint(work_dir: Path) -> str | None:
    """The newest whole checkpoint of a work directory, ``None`` if there never was one.

    mmengine notes the newest one in a file of its own. A run that was killed between the two writes, or a folder that
    was moved since, leaves a note that is empty or leads nowhere; then the checkpoints themselves are tried.
    """
    note = work_dir / 'last_checkpoint'
    noted = note.read_text().strip() if note.is_file() else ''
    if '://' in noted:
        return noted
    if noted and (work_dir / Path(noted).name).is_file():  # of a folder that was copied, the copy
        noted = str(work_dir / Path(noted).name)
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


def check_weights(model: nn.Module, path: str, whole: bool = True, resume: bool = False) -> None:
    """Check that a local checkpoint of a training run covers a model; mmengine itself would only warn.

    Args:
        model: The one that is going to load it.
        path: The checkpoint. One from a web server is left to mmengine.
        whole: Look at all parameters, not only those of backbones: heads may be new.
        resume: The run goes on from it, for which it has to hold more than weights.

    Raises:
        UserError: If tensors are missing, misshapen or not finite; the message names the first.
        CheckpointError: If the checkpoint cannot be read.
    """
    if '://' not in path:
        _check_content(model, read_ahead(path), path, whole, resume)


def _check_content(
    model: nn.Module, content: Mapping[str, Any], path: str, whole: bool = True, resume: bool = False
) -> None:
    """As :func:`check_weights`, for a checkpoint that has been read."""
    lacking = next((part for part in ('meta', 'optimizer') if part not in content), None)
    if resume and lacking:
        raise UserError(
            f"checkpoint {path} has no '{lacking}', so no run can go on from it; a new one can start from its weights: "
            f'--cfg-options load_from={path}'
        )
    tensors = tensors_of(content)
    expected = {name: t for name, t in model.state_dict().items() if whole or 'backbone' in name.split('.')}
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


def tensors_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights in a checkpoint, by names without what distributed training puts before them, as mmengine does."""
    return {name.removeprefix('module.'): tensor for name, tensor in content.get('state_dict', content).items()}


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
    unused = model.load_state_dict(tensors_of(content), strict=False).unexpected_keys
    if unused:
        print(f'note: {len(unused)} tensors of {path} are not in the model and unused: {unused[0]}, …', file=sys.stderr)
    return content
