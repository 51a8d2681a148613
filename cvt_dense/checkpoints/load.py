"""Load a checkpoint into a trunk: every one of its tensors, or an error that says what does not fit."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from ..models.arch import StagedArch
from ..models.trunk import Trunk
from .compare import compare
from .families import Family, family_of, on_meta, recognised
from .files import read
from .formats import StateDict, to_trunk, unwrap
from .sources import fetch

_NAMED = 3  # how many tensors an error names


@dataclass(frozen=True)
class LoadReport:
    """What was loaded from where.

    Attributes:
        checkpoint: Where it is.
        format: Of its names.
        loaded: Tensors of the model.
        left_over: The first parts of names that the model has not.
        adapted: In words, what was brought to the model's shapes; empty for nothing.
    """

    checkpoint: str
    format: str
    loaded: int
    left_over: tuple[str, ...]
    adapted: str = ''

    def __str__(self) -> str:
        line = f'loaded {self.loaded} tensors of the trunk from {self.checkpoint} ({self.format} format)'
        if self.adapted:
            line += f'; {self.adapted}'
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


def load_pretrained(model: Trunk, checkpoint: str | os.PathLike[str], prefix: str | None = None) -> LoadReport:
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


def read_fitting(model: Trunk, checkpoint: str, prefix: str | None = None) -> tuple[StateDict, LoadReport]:
    """Read what :func:`load_pretrained` would load; the model, left as it is, may be on the meta device.

    Raises:
        CheckpointError: As ``load_pretrained`` does.
    """
    family = family_of(model)
    content = read_checkpoint(checkpoint)
    converted = to_trunk(content, prefix, family.formats)
    if converted is None:
        raise CheckpointError(f'checkpoint {checkpoint} {_what_else(content, prefix, family)}')
    tensors, format_name = converted
    expected = model.state_dict()
    tensors, adapted = family.adapted(tensors, expected, model)
    check_fit(checkpoint, tensors, expected, family, model.arch, model.num_stages)
    loaded = {key: tensor for key, tensor in tensors.items() if key in expected}
    left_over = sorted({key.split('.')[0] for key in tensors.keys() - expected.keys()})
    return loaded, LoadReport(checkpoint, format_name, len(loaded), tuple(left_over), adapted)


def _what_else(content: Mapping[str, Any], prefix: str | None, wanted: Family) -> str:
    """What a checkpoint holds that is not of the wanted family."""
    tensors = unwrap(content, prefix)
    found = recognised(tensors)
    if found is None:
        where = f'below {prefix!r}' if prefix else f'of any known format ({", ".join(wanted.formats)})'
        return f'holds no {wanted.name} weights {where}'
    family, name = found
    variant = family.variant_of(family.formats[name].to_trunk(tensors))
    of_variant = f' ({variant})' if variant else ''
    return f'holds weights of {family.name}{of_variant}, and the model is a {wanted.name}'


def check_fit(
    checkpoint: str,
    tensors: StateDict,
    expected: Mapping[str, Tensor],
    family: Family,
    arch: StagedArch,
    num_stages: int,
) -> None:
    """Check that tensors cover a trunk.

    Args:
        checkpoint: Where they come from, for the message.
        tensors: Under the trunk's names.
        expected: State dict of the model.
        family: Its family.
        arch: Architecture of the model.
        num_stages: How many of its stages the model has.

    Raises:
        CheckpointError: If tensors of the trunk are missing, misshapen, not in the model or not finite.
    """
    problems = _misfits(tensors, expected, family, range(num_stages, arch.num_stages))
    if problems:
        hint = _variant_hint(tensors, family, arch)
        raise CheckpointError(f'checkpoint {checkpoint} does not fit the model{hint}: {"; ".join(problems)}')


def _misfits(tensors: StateDict, expected: Mapping[str, Tensor], family: Family, not_built: range) -> list[str]:
    """What keeps tensors from covering a trunk: missing, misshapen or surplus ones, and non-finite values."""
    mismatch = compare(tensors, expected, required=(key for key in expected if family.stage_of(key) is not None))
    # A stage of the architecture that the model does not build may be left over, nothing else of a trunk may.
    surplus = [
        key
        for key in tensors.keys() - expected.keys()
        if (stage := family.stage_of(key)) is not None and stage not in not_built
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


def _variant_hint(tensors: StateDict, family: Family, wanted: StagedArch) -> str:
    """Name the variant that the tensors are of, if it is a known one and not the one wanted."""
    found = family.variant_of(tensors)
    asked = family.name_of(wanted) or 'another architecture'
    return f" (these are {found}'s; the config asks for {asked})" if found and found != asked else ''


def check_complete(checkpoint: str, tensors: StateDict, family: Family) -> None:
    """Check that tensors are a complete trunk, of whatever architecture.

    Args:
        checkpoint: Where they come from, for the message.
        tensors: Under the trunk's names.
        family: That they are of.

    Raises:
        CheckpointError: If stages or blocks are not numbered through, or a tensor of one is missing or misshapen. The
            last blocks of an unknown architecture may be missing without anyone knowing.
    """
    stages = sorted({stage for key in tensors if (stage := family.stage_of(key)) is not None})
    weights = [tensors.get(family.embedding(stage)) for stage in stages]
    stem = tensors.get(family.stem(tensors))
    if stages != list(range(len(stages))) or any(w is None or w.ndim != 4 for w in (*weights, stem)):
        raise CheckpointError(f'checkpoint {checkpoint} is incomplete: it has parts of stages {stages} only')
    try:
        arch = family.arch_of(tensors, [len(weight) for weight in weights], list(family.depths_of(tensors)))
    except ValueError as error:
        raise CheckpointError(f'checkpoint {checkpoint} is incomplete or damaged: {error}') from error
    expected = on_meta(family, arch, stem.shape[1]).state_dict()
    if family.variant_of(tensors) is None and family.optional:
        expected = {key: t for key, t in expected.items() if key in tensors or not key.endswith(family.optional)}
    check_fit(checkpoint, tensors, expected, family, arch, arch.num_stages)
