"""Formats of CvT checkpoints, each a pure function from one state dict to the trunk's parameter names.

The trunk's names are those of the authors' ``.pth`` files, so only foreign formats are renamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

#: Keys under which training frameworks keep the model beside their optimizer and bookkeeping.
_CONTAINERS = ('state_dict', 'model')
#: What wrappers and detectors put before the backbone's names.
_WRAPPERS = ('module.', 'backbone.')

#: Hugging Face ``transformers``' names (``CvtModel``), after the ``encoder.stages.{i}.`` they begin with.
_TRANSFORMERS_STAGE = re.compile(r'^(?:cvt\.)?encoder\.stages\.(\d+)\.(.+)$')
_TRANSFORMERS_RENAMES = (
    (r'^embedding\.convolution_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^embedding\.convolution_embeddings\.normalization\.', 'patch_embed.norm.'),
    (r'^layers\.', 'blocks.'),
    (r'\.layernorm_before\.', '.norm1.'),
    (r'\.layernorm_after\.', '.norm2.'),
    (
        r'\.attention\.attention\.convolution_projection_(query|key|value)\.convolution_projection\.',
        r'.attn.conv_\1.',
    ),
    (r'\.conv_(\w)\w+\.convolution\.', r'.conv_proj_\1.conv.'),
    (r'\.conv_(\w)\w+\.normalization\.', r'.conv_proj_\1.bn.'),
    (r'\.attention\.attention\.projection_(\w)\w+\.', r'.attn.proj_\1.'),
    (r'\.attention\.output\.dense\.', '.attn.proj.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'\.output\.dense\.', '.mlp.fc2.'),
)


def is_transformers(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of Hugging Face's ``CvtModel`` or ``CvtForImageClassification``."""
    return any(_TRANSFORMERS_STAGE.match(key) for key in state_dict)


def from_transformers(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the parameters of Hugging Face's ``CvtModel`` or ``CvtForImageClassification``."""
    renamed = {}
    for key, tensor in state_dict.items():
        match = _TRANSFORMERS_STAGE.match(key)
        if match:
            stage, name = match.groups()
            for pattern, replacement in _TRANSFORMERS_RENAMES:
                name = re.sub(pattern, replacement, name)
            key = f'stage{stage}.{name}'
        else:
            key = re.sub(r'^layernorm\.', 'norm.', re.sub(r'^classifier\.', 'head.', key))
        renamed[key] = tensor
    return renamed


def is_official(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are the trunk's own, which are those of the authors' files."""
    return any(re.match(r'stage\d+\.(patch_embed|blocks)\.', key) for key in state_dict)


def unwrap(checkpoint: Mapping[str, Any], prefix: str | None = None) -> StateDict:
    """Take the backbone's tensors out of what a training framework saved around them.

    Args:
        checkpoint: A state dict, or a dict that holds one under ``state_dict`` or ``model``.
        prefix: What the backbone's names begin with; by default ``module.`` and ``backbone.`` are found by themselves.
    """
    while container := next((c for c in _CONTAINERS if isinstance(checkpoint.get(c), Mapping)), None):
        checkpoint = checkpoint[container]
    tensors = {key: value for key, value in checkpoint.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if prefix is not None:
        return _below(tensors, f'{prefix.rstrip(".")}.') if prefix else tensors
    while inner := next((inner for wrapper in _WRAPPERS if (inner := _below(tensors, wrapper))), None):
        tensors = inner
    return tensors


def _below(tensors: StateDict, prefix: str) -> StateDict:
    return {key[len(prefix) :]: tensor for key, tensor in tensors.items() if key.startswith(prefix)}


#: Each format: its name, how it is recognised, and how it becomes the trunk's.
FORMATS: tuple[tuple[str, Callable[[Mapping[str, Any]], bool], Callable[[StateDict], StateDict]], ...] = (
    ('official', is_official, dict),
    ('transformers', is_transformers, from_transformers),
)


def to_trunk(checkpoint: Mapping[str, Any], prefix: str | None = None) -> tuple[StateDict, str] | None:
    """Bring a checkpoint of any known format to the trunk's parameter names.

    Args:
        checkpoint: As read from a file.
        prefix: As :func:`unwrap` takes it.

    Returns:
        The renamed tensors and the format's name; None if no format fits.
    """
    tensors = unwrap(checkpoint, prefix)
    for name, recognised, convert in FORMATS:
        if recognised(tensors):
            return convert(tensors), name
    return None
