"""Formats of checkpoints, each a pair of pure functions between its parameter names and the trunk's.

The trunk's names are those of the authors' ``.pth`` files, so only foreign formats are renamed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

StateDict = dict[str, Tensor]

#: Keys under which training frameworks keep the model beside their optimizer and bookkeeping. timm's average of the
#: weights comes before the weights, as in timm itself: a run's best checkpoint is the one whose average did best.
_CONTAINERS = ('state_dict_ema', 'state_dict', 'model', 'model_ema')
#: What wrappers and detectors put before the backbone's names.
_WRAPPERS = ('module.', '_orig_mod.', 'backbone.')

#: A parameter of a stage in the trunk: stage, block (if it is one's) and what follows.
_TRUNK_KEY = re.compile(r'^stage(\d+)\.(?:blocks\.(\d+)\.)?(.+)$')
#: The same in Hugging Face ``transformers``, in ``CvtForImageClassification`` and, without ``cvt.``, in ``CvtModel``.
_TRANSFORMERS_KEY = re.compile(r'^(?:cvt\.)?encoder\.stages\.(\d+)\.(?:layers\.(\d+)\.)?(.+)$')
#: What follows, with the parameter's own name (``weight``, ``bias``, …) left off: ours and that of ``transformers``.
_TRANSFORMERS_NAMES = {
    'cls_token': 'cls_token',
    'patch_embed.proj': 'embedding.convolution_embeddings.projection',
    'patch_embed.norm': 'embedding.convolution_embeddings.normalization',
    'norm1': 'layernorm_before',
    'norm2': 'layernorm_after',
    **{
        f'attn.conv_proj_{name[0]}.{ours}': (
            f'attention.attention.convolution_projection_{name}.convolution_projection.{theirs}'
        )
        for name in ('query', 'key', 'value')
        for ours, theirs in (('conv', 'convolution'), ('bn', 'normalization'))
    },
    **{f'attn.proj_{name[0]}': f'attention.attention.projection_{name}' for name in ('query', 'key', 'value')},
    'attn.proj': 'attention.output.dense',
    'mlp.fc1': 'intermediate.dense',
    'mlp.fc2': 'output.dense',
}
_TRUNK_NAMES = {theirs: ours for ours, theirs in _TRANSFORMERS_NAMES.items()}
#: What a classifier has on top of the stages, likewise.
_TRANSFORMERS_TOP = {'norm': 'layernorm', 'head': 'classifier'}
_TRUNK_TOP = {theirs: ours for ours, theirs in _TRANSFORMERS_TOP.items()}


def is_official(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are the trunk's own, which are those of the authors' files."""
    return any(re.match(r'stage\d+\.(patch_embed|blocks)\.', key) for key in state_dict)


def is_transformers(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of Hugging Face's ``CvtModel`` or ``CvtForImageClassification``."""
    return any(_TRANSFORMERS_KEY.match(key) for key in state_dict)


def from_transformers(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the parameters of Hugging Face's ``CvtModel`` or ``CvtForImageClassification``."""

    def rename(key: str) -> str:
        match = _TRANSFORMERS_KEY.match(key)
        if not match:
            return _renamed(key, _TRUNK_TOP)
        stage, block, name = match.groups()
        name = _renamed(name, _TRUNK_NAMES)
        return f'stage{stage}.{name}' if block is None else f'stage{stage}.blocks.{block}.{name}'

    return {rename(key): tensor for key, tensor in state_dict.items()}


def to_transformers(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the trunk's parameters, and those of a classifier on it, to ``CvtForImageClassification``'s."""

    def rename(key: str) -> str:
        match = _TRUNK_KEY.match(key)
        if not match:
            return _renamed(key, _TRANSFORMERS_TOP)
        stage, block, name = match.groups()
        name = _renamed(name, _TRANSFORMERS_NAMES)
        below = f'cvt.encoder.stages.{stage}'
        return f'{below}.{name}' if block is None else f'{below}.layers.{block}.{name}'

    return {rename(key): tensor for key, tensor in state_dict.items()}


def _renamed(key: str, names: Mapping[str, str]) -> str:
    """Replace a key, or all of it but its last component, as the table says; others stay as they are."""
    module, _, parameter = key.rpartition('.')
    return names.get(key) or (f'{names[module]}.{parameter}' if module in names else key)


def is_timm(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the models that :mod:`cvt_dense.backbones.timm` registers in timm."""
    return not is_timm_cmt(state_dict) and any(re.match(r'stages\.\d+\.patch_embed\.proj\.', key) for key in state_dict)


def from_timm(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the parameters of a timm model."""
    return {re.sub(r'^stages\.(\d+)\.', r'stage\1.', key): tensor for key, tensor in state_dict.items()}


def to_timm(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the trunk's parameters to those of a timm model."""
    return {re.sub(r'^stage(\d+)\.', r'stages.\1.', key): tensor for key, tensor in state_dict.items()}


@dataclass(frozen=True)
class Format:
    """A format of checkpoints.

    Attributes:
        recognises: Whether a state dict has this format's parameter names.
        to_trunk: Renames a state dict of this format to the trunk's names; what is not the trunk's stays in.
        from_trunk: The other way round.
    """

    recognises: Callable[[Mapping[str, Any]], bool]
    to_trunk: Callable[[Mapping[str, Tensor]], StateDict]
    from_trunk: Callable[[Mapping[str, Tensor]], StateDict]


def is_official_cmt(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of CMT's trunk, which are those of its authors' files."""
    return any(re.match(r'(patch_embed|blocks)_[a-z]\.', key) for key in state_dict)


def is_timm_cmt(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the models that :mod:`cvt_dense.backbones.timm_cmt` registers in timm."""
    return any(re.match(r'stages\.\d+\.(relative_pos$|blocks\.\d+\.mlp\.proj_bn\.)', key) for key in state_dict)


#: What a timm model of CMT calls the parts of the classifier.
_CMT_TOP = {'_fc': 'conv_head', '_bn': 'norm_head'}
_CMT_TIMM_TOP = {theirs: ours for ours, theirs in _CMT_TOP.items()}


def from_timm_cmt(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the parameters of a timm model of CMT."""

    def rename(key: str) -> str:
        match = re.match(r'^stages\.(\d+)\.(stem|patch_embed|blocks|relative_pos)(.*)$', key)
        if not match:
            return _renamed(key, _CMT_TIMM_TOP)
        stage, part, rest = match.groups()
        return f'stem_{rest[1:]}' if part == 'stem' else f'{part}_{chr(ord("a") + int(stage))}{rest}'

    return {rename(key): tensor for key, tensor in state_dict.items()}


def to_timm_cmt(state_dict: Mapping[str, Tensor]) -> StateDict:
    """Rename the parameters of CMT's trunk, and those of a classifier on it, to those of a timm model."""

    def rename(key: str) -> str:
        match = re.match(r'^(?:stem_(.+)|(patch_embed|blocks|relative_pos)_([a-z])(.*))$', key)
        if not match:
            return _renamed(key, _CMT_TOP)
        stem, part, letter, rest = match.groups()
        return f'stages.0.stem.{stem}' if stem else f'stages.{ord(letter) - ord("a")}.{part}{rest}'

    return {rename(key): tensor for key, tensor in state_dict.items()}


#: Of CMT, by name.
CMT_FORMATS: dict[str, Format] = {
    'official': Format(is_official_cmt, dict, dict),
    'timm': Format(is_timm_cmt, from_timm_cmt, to_timm_cmt),
}

#: Of CvT, by name.
FORMATS: dict[str, Format] = {
    'official': Format(is_official, dict, dict),
    'transformers': Format(is_transformers, from_transformers, to_transformers),
    'timm': Format(is_timm, from_timm, to_timm),
}


def unwrap(checkpoint: Mapping[str, Any], prefix: str | None = None) -> StateDict:
    """Take the backbone's tensors out of what a training framework saved around them.

    Args:
        checkpoint: A state dict, or a dict that holds one under ``state_dict_ema`` (timm's), ``state_dict``, ``model``
            or, without these, ``model_ema``.
        prefix: What the backbone's names begin with; by default ``module.``, ``_orig_mod.`` (torch.compile's) and
            ``backbone.`` are found by themselves.
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


def to_trunk(
    checkpoint: Mapping[str, Any], prefix: str | None = None, formats: Mapping[str, Format] = FORMATS
) -> tuple[StateDict, str] | None:
    """Bring a checkpoint of any known format to the trunk's parameter names.

    Args:
        checkpoint: As read from a file.
        prefix: As :func:`unwrap` takes it.
        formats: The known ones, by name; by default those of CvT.

    Returns:
        The renamed tensors and the format's name; None if no format fits.
    """
    tensors = unwrap(checkpoint, prefix)
    for name, known in formats.items():
        if known.recognises(tensors):
            return known.to_trunk(tensors), name
    return None
