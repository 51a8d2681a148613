"""Load a checkpoint into a trunk: every one of its tensors, or an error that says what does not fit."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..models.cvt.arch import ARCHS, Arch
from ..models.cvt.trunk import CvTTrunk
from .compare import compare
from .files import read
from .formats import FORMATS, StateDict, to_trunk
from .sources import fetch

_TRUNK_KEY = re.compile(r'^stage(\d+)\.')
_NAMED = 3  # how many tensors an error names


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from where."""

    checkpoint: str
    format: str
    loaded: int
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        line = f'loaded {self.loaded} tensors of the trunk from {self.checkpoint} ({self.format} format)'
        if self.left_over:
            line += f'; not needed here: {", ".join(self.left_over)}'
        return line


def read_checkpoint(checkpoint: str) -> Mapping[str, Any]:
    """Read what a checkpoint holds, wherever it is: a file, an address, or a published name.

    Args:
        checkpoint: As :func:`~cvt_dense.checkpoints.sources.locate` takes it.

    Raises:
        CheckpointError: If the checkpoint is not found or cannot be read.
    """
    return read(fetch(checkpoint))


def load_pretrained(model: CvTTrunk, checkpoint: str | os.PathLike[str], prefix: str | None = None) -> LoadReport:
    """Load a checkpoint into a trunk, or into a backbone that is one.

    Output norms (``norm0`` …) are taken where the checkpoint has them, that is if it comes from a trained detector
    or segmentor; published checkpoints do not.

    Args:
        model: Changed in place; left as it was if the checkpoint does not fit.
        checkpoint: A file or a published name, see :mod:`cvt_dense.checkpoints.sources`.
        prefix: What the backbone's parameter names begin with in the file; found by itself for ``module.``,
            ``_orig_mod.`` and ``backbone.``.

    Raises:
        CheckpointError: If the checkpoint is not found, cannot be read or does not cover the trunk.
    """
    loaded, report = read_fitting(model, str(checkpoint), prefix)
    model.load_state_dict(loaded, strict=False)  # missing ones were refused above
    return report


def read_fitting(model: CvTTrunk, checkpoint: str, prefix: str | None = None) -> tuple[StateDict, LoadReport]:
    """Read what :func:`load_pretrained` would load; the model, left as it is, may be on the meta device.

    Raises:
        CheckpointError: As ``load_pretrained`` does.
    """
    converted = to_trunk(read_checkpoint(checkpoint), prefix)
    if converted is None:
        where = f'below {prefix!r}' if prefix else f'of any known format ({", ".join(FORMATS)})'
        raise CheckpointError(f'checkpoint {checkpoint} holds no CvT weights {where}')
    tensors, format_name = converted
    expected = model.state_dict()
    check_fit(checkpoint, tensors, expected, model.arch, model.num_stages)
    loaded = {key: tensor for key, tensor in tensors.items() if key in expected}
    left_over = sorted({key.split('.')[0] for key in tensors.keys() - expected.keys()})
    return loaded, LoadReport(checkpoint, format_name, len(loaded), tuple(left_over))


def check_fit(checkpoint: str, tensors: StateDict, expected: Mapping[str, Tensor], arch: Arch, num_stages: int) -> None:
    """Check that tensors cover a trunk.

    Args:
        checkpoint: Where they come from, for the message.
        tensors: Under the trunk's names.
        expected: State dict of the model.
        arch: Architecture of the model.
        num_stages: How many of its stages the model has.

    Raises:
        CheckpointError: If tensors of the trunk are missing, misshapen, not in the model or not finite.
    """
    problems = _misfits(tensors, expected, range(num_stages, arch.num_stages))
    if problems:
        hint = _variant_hint(tensors, arch)
        raise CheckpointError(f'checkpoint {checkpoint} does not fit the model{hint}: {"; ".join(problems)}')


def _misfits(tensors: StateDict, expected: Mapping[str, Tensor], not_built: range) -> list[str]:
    """What keeps tensors from covering a trunk: missing, misshapen or surplus ones, and non-finite values."""
    mismatch = compare(tensors, expected, required=filter(_TRUNK_KEY.match, expected))
    # A stage of the architecture that the model does not build may be left over, nothing else of a trunk may.
    surplus = [
        key
        for key in tensors.keys() - expected.keys()
        if (match := _TRUNK_KEY.match(key)) and int(match.group(1)) not in not_built
    ]
    shapes = (f'{key} is {list(tensors[key].shape)}, not {list(expected[key].shape)}' for key in mismatch.misshapen)
    lists = {
        'missing': list(mismatch.missing),
        'misshapen': list(shapes),
        'not in the model': sorted(surplus),
        'not finite': list(mismatch.infinite),
    }
    return [f'{len(names)} {what} ({_some(names)})' for what, names in lists.items() if names]


def _some(names: list[str]) -> str:
    return ', '.join(names[:_NAMED]) + (', …' if len(names) > _NAMED else '')


def _variant_hint(tensors: StateDict, wanted: Arch) -> str:
    """Name the variant that the tensors are of, if it is a known one and not the one wanted."""
    found = variant_of(tensors)
    asked = next((name for name, arch in ARCHS.items() if arch == wanted), 'another architecture')
    return f" (these are {found}'s; the config asks for {asked})" if found and found != asked else ''


def check_complete(checkpoint: str, tensors: StateDict) -> None:
    """Check that tensors are a complete trunk, of whatever architecture.

    Args:
        checkpoint: Where they come from, for the message.
        tensors: Under the trunk's names.

    Raises:
        CheckpointError: If stages or blocks are not numbered through, or a tensor of one is missing or misshapen. The
            last blocks of an unknown architecture may be missing without anyone knowing.
    """
    stages = sorted({int(match.group(1)) for key in tensors if (match := _TRUNK_KEY.match(key))})
    dims = [tensors.get(f'stage{stage}.patch_embed.proj.weight') for stage in stages]
    if stages != list(range(len(stages))) or any(weight is None or weight.ndim != 4 for weight in dims):
        raise CheckpointError(f'checkpoint {checkpoint} is incomplete: it has parts of stages {stages} only')
    ratios = [
        [len(tensors.get(f'stage{stage}.blocks.{block}.mlp.fc1.bias', dim)) / len(dim) for block in range(depth)]
        for stage, (dim, depth) in enumerate(zip(dims, _depths(tensors)))
    ]
    # The number of heads shows in no shape. A file of the first stages of a variant has no cls token yet.
    arch = Arch([len(dim) for dim in dims], [1] * len(dims), _depths(tensors), mlp_ratio=ratios)
    with torch.device('meta'):
        expected = CvTTrunk(arch, in_channels=dims[0].shape[1]).state_dict()
    if variant_of(tensors) is None:
        expected = {key: t for key, t in expected.items() if key in tensors or not key.endswith('cls_token')}
    check_fit(checkpoint, tensors, expected, arch, arch.num_stages)


def variant_of(tensors: StateDict) -> str | None:
    """Name of the known variant that tensors under the trunk's names are of, by depths and widths."""
    embeddings = (tensors.get(f'stage{i}.patch_embed.proj.weight') for i in range(len(_depths(tensors))))
    dims = tuple(weight.shape[0] for weight in embeddings if weight is not None and weight.ndim)
    return next(
        (name for name, arch in ARCHS.items() if (arch.depths, arch.embed_dims) == (_depths(tensors), dims)), None
    )


def _depths(tensors: StateDict) -> tuple[int, ...]:
    blocks = {m.groups() for key in tensors if (m := re.match(r'^stage(\d+)\.blocks\.(\d+)\.', key))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(stage == s for s, _ in blocks) for stage in stages)
