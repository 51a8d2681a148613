"""Read checkpoint files without ever running code that they carry."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..errors import CheckpointError, reason
from .unpickling import mmengine_types

#: What a directory in the layout of Hugging Face's ``save_pretrained`` holds its weights in, best first.
WEIGHT_FILES = (
    'model.safetensors',
    'model.safetensors.index.json',
    'pytorch_model.bin',
    'pytorch_model.bin.index.json',
)


def read(path: Path) -> Mapping[str, Any]:
    """Read a ``.safetensors`` file, one that ``torch.save`` wrote, or all that an index (``.json``) lists.

    Tensors come on the CPU. A checkpoint of a training run is read whole, its history too.

    Raises:
        CheckpointError: If a file is damaged, is not a checkpoint, or holds more than plain data.
    """
    if path.suffix == '.json':
        return _read_shards(path)
    try:
        if path.suffix == '.safetensors':
            return load_file(path)
        with mmengine_types():
            content = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f'checkpoint {path} was refused: it is damaged, or holds more than plain weights ({reason(error)})'
        ) from error
    except PermissionError as error:
        raise CheckpointError(f'checkpoint {path} may not be read: {error.strerror}') from error
    except Exception as error:  # damaged files make readers raise all kinds
        raise CheckpointError(
            f'checkpoint {path} is damaged, incomplete or not a checkpoint: {type(error).__name__}: {reason(error)}'
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f'checkpoint {path} holds a {type(content).__name__} where a state dict was expected')
    return content


def shard_names(index: Path) -> list[str]:
    """The files that an index of a sharded checkpoint lists; they lie beside it.

    Raises:
        CheckpointError: If the file is not such an index, or lists files elsewhere.
    """
    try:
        names = sorted(set(json.loads(index.read_text())['weight_map'].values()))
    except Exception as error:  # damaged indices make readers raise all kinds
        raise CheckpointError(
            f'checkpoint {index} is not an index of shards: {type(error).__name__}: {reason(error)}'
        ) from error
    for name in names:
        if not isinstance(name, str) or not is_file_name(name) or Path(name).suffix == '.json':
            raise CheckpointError(f'checkpoint {index} lists {name!r}, which is not a file beside it')
    return names


def is_file_name(name: str) -> bool:
    """Whether a name, put after a folder, stays in the folder."""
    return name not in ('', '..') and Path(name).name == name


def _read_shards(index: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for name in shard_names(index):
        if not (index.parent / name).is_file():
            raise CheckpointError(f'checkpoint {index} lists {name!r}, which is not beside it')
        tensors |= read(index.parent / name)
    missing = sorted(set(json.loads(index.read_text())['weight_map']) - set(tensors))
    if missing:
        raise CheckpointError(f'checkpoint {index} lists {missing[0]!r}, which none of its files holds')
    return tensors
