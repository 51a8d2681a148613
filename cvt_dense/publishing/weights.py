"""Weights as they are published: plain tensors and a little about them, in a file that is named after its content."""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

#: What of a checkpoint's ``meta`` is published with its weights.
_META = ('epoch', 'iter', 'seed', 'time', 'mmengine_version', 'dataset_meta')


def plain(value: Any) -> Any:
    """A value in types that ``torch.load(weights_only=True)`` and JSON take; what is neither becomes text."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def without_commit(version: str) -> str:
    """The version of mmengine in a checkpoint's ``meta``, which is followed by the commit of the folder of the run."""
    return re.sub(r'\+?([0-9a-f]{40}|unknown|None)?$', '', version)


def weights_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of their own memory on the CPU: a view would take all that it looks at into the file."""
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def meta_of(meta: Mapping[str, Any], config: str, version: str) -> dict[str, Any]:
    """What goes with the weights: classes and palette as ``dataset_meta``, the config, and versions.

    Args:
        meta: Of the checkpoint.
        config: Text of the config.
        version: Of this package.
    """
    kept = {name: plain(meta[name]) for name in _META if name in meta}
    if 'mmengine_version' in kept:
        kept['mmengine_version'] = without_commit(kept['mmengine_version'])
    return {**kept, 'cfg': config, 'cvt_dense_version': version}


def as_pth(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """The content of a ``.pth`` file, the same for the same tensors."""
    buffer = io.BytesIO()  # a file's name would go into it
    torch.save(dict(meta=dict(meta), state_dict=dict(tensors)), buffer)
    return buffer.getvalue()


def as_safetensors(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes:
    """The content of a ``.safetensors`` file, with classes, palette and versions in its header."""
    return save(dict(tensors), {'format': 'pt', 'meta': json.dumps({k: v for k, v in meta.items() if k != 'cfg'})})


def published_name(config: str, date: str, content: bytes) -> str:
    """OpenMMLab's name for published weights, without suffix: config, date, and the first of the content's SHA-256."""
    return f'{config}_{date}-{hashlib.sha256(content).hexdigest()[:8]}'
