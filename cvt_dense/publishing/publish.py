"""Write a folder of all that is published of a run: whole, or not at all."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from ..checkpoints.files import read
from ..engine.config import load_config
from ..engine.log_to import leave_out_logs
from ..engine.model import build_model
from ..engine.run_checkpoints import tensors_of
from ..errors import UserError, of_file
from ..version import __version__
from .card import model_card
from .facts import Facts, facts_of
from .logs import Logs
from .source import Source
from .timm_folder import image_size, timm_config, why_not, write_timm_folder
from .weights import as_pth, as_safetensors, meta_of, published_name, weights_of

#: What of a config is of the machine or the run, and not of the model.
_NOT_PUBLISHED = ('work_dir', 'launcher', 'resume', 'load_from')


@dataclass(frozen=True)
class Published:
    """What was written.

    Attributes:
        folder: Where.
        files: Names of the files in it.
        facts: What is known about the model.
        not_in_timm: Why the backbone is not there for timm; None if it is.
    """

    folder: Path
    files: tuple[str, ...]
    facts: Facts
    not_in_timm: str | None


def publish(source: Source, out: Path, repo: str | None = None, license: str | None = None) -> Published:
    """Publish a run.

    Args:
        source: Its files.
        out: Folder to write; it may exist if it is empty.
        repo: ``user/name`` on the Hub, for the card.
        license: Of the weights, as the Hub abbreviates it.

    Raises:
        UserError: If ``out`` holds something, the config cannot be built, or the checkpoint does not cover its model.
        CheckpointError: If the checkpoint cannot be read.
    """
    check_out(out)
    cfg = load_config(source.config)
    for name in _NOT_PUBLISHED:
        cfg.pop(name, None)
    leave_out_logs(cfg)
    content = read(source.checkpoint)
    model = build_model(copy.deepcopy(cfg), str(source.checkpoint))  # which changes it
    facts = facts_of(cfg, source.config.stem, content, model, Logs.read(source.work_dir))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix='.partial-') as partial:
            folder = Path(partial, 'published')
            folder.mkdir()
            reason = _write(folder, cfg, content, model, facts, _date(content, source.checkpoint), repo, license)
            os.replace(folder, out)  # in the place of an empty folder, too
    except OSError as error:
        raise UserError(f'{out} cannot be written: {of_file(error)}') from error
    return Published(out, tuple(sorted(file.name for file in out.iterdir())), facts, reason)


def check_out(out: Path) -> None:
    """Check that a folder can be written without overwriting anything.

    Raises:
        UserError: If it is there and not empty, or is a file.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(f'{out} exists, and nothing is overwritten: choose another --out')


def _date(content: Mapping[str, Any], checkpoint: Path) -> str:
    """The day on which a checkpoint was written, by what it says, else by its file."""
    told = re.match(r'\d{8}', str((content.get('meta') or {}).get('time', '')))
    return told[0] if told else time.strftime('%Y%m%d', time.localtime(checkpoint.stat().st_mtime))


def _write(
    folder: Path,
    cfg: Config,
    content: Mapping[str, Any],
    model: nn.Module,
    facts: Facts,
    date: str,
    repo: str | None,
    license: str | None,
) -> str | None:
    """Write all files; returns why the backbone is not there for timm, if it is not."""
    cfg.dump(folder / f'{facts.name}.py')
    known = model.state_dict().keys()
    weights = weights_of({name: tensor for name, tensor in tensors_of(content).items() if name in known})
    meta = meta_of(content.get('meta') or {}, cfg.pretty_text, __version__)
    pth = as_pth(weights, meta)
    name = published_name(facts.name, date, pth)
    (folder / f'{name}.pth').write_bytes(pth)
    (folder / f'{name}.safetensors').write_bytes(as_safetensors(weights, meta))
    _check(folder, facts.name, name)
    backbone, preprocessor = getattr(model, 'backbone', None), cfg.model.get('data_preprocessor') or {}
    not_in_timm = why_not(backbone, preprocessor)
    if not_in_timm is None:
        size = image_size(preprocessor, _pipeline(cfg))
        write_timm_folder(timm_config(backbone, cfg.model.backbone, preprocessor, size), backbone, weights, folder)
    if facts.logs.evaluations:
        told = dict(iteration=facts.iteration, metrics=facts.metrics, evaluations=facts.logs.evaluations)
        (folder / 'metrics.json').write_text(f'{json.dumps(told, indent=2)}\n')
    if facts.logs.curves:
        shutil.copyfile(facts.logs.curves, folder / 'curves.png')
    files = [file.name for file in folder.iterdir()]
    card = model_card(facts, name, repo, license, not_in_timm is None, files)
    (folder / 'README.md').write_text(card, encoding='utf-8')
    return not_in_timm


def _pipeline(cfg: Config) -> list[Mapping[str, Any]]:
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'pipeline' not in dataset and dataset.get('dataset'):
        dataset = dataset['dataset']
    return dataset.get('pipeline') or []


def _check(folder: Path, config: str, name: str) -> None:
    """See that what was written is what users load: plain data, which cover the model of the config.

    Raises:
        UserError: If the config cannot be built.
        CheckpointError: If the weights do not cover it.
    """
    torch.load(folder / f'{name}.pth', weights_only=True)
    for suffix in ('.pth', '.safetensors'):
        build_model(load_config(folder / f'{config}.py'), str(folder / f'{name}{suffix}'))
