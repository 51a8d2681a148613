"""Load a checkpoint into a trunk: every one of its tensors, or an error that says what does not fit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..arch import ARCHS, Arch
from ..trunk import CvTTrunk
from .formats import StateDict, to_trunk
from .sources import CheckpointError, fetch, read

_TRUNK_KEY = re.compile(r'^stage(\d+)\.')
_OUT_NORM_KEY = re.compile(r'^norm\d+\.')
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


def load_pretrained(model: CvTTrunk, checkpoint: str, prefix: str | None = None) -> LoadReport:
    """Load a checkpoint into a trunk, or into a backbone that is one.

    Output norms (``norm0`` …) are taken where the checkpoint has them, that is if it comes from a trained detector
    or segmentor; published checkpoints do not.

    Args:
        model: Changed in place; left as it was if the checkpoint does not fit.
        checkpoint: A file or a published name, see :mod:`cvt_dense.checkpoints.sources`.
        prefix: What the backbone's parameter names begin with in the file; found by itself for ``module.`` and
            ``backbone.``.

    Raises:
        CheckpointError: If the checkpoint cannot be had or read, or does not cover the trunk.
    """
    converted = to_trunk(read(fetch(checkpoint)), prefix)
    if converted is None:
        where = f'below {prefix!r}' if prefix else 'of any known format (official, transformers)'
        raise CheckpointError(f'checkpoint {checkpoint} holds no CvT weights {where}')
    tensors, format_name = converted
    expected = model.state_dict()
    problems = _misfits(tensors, expected, model)
    if problems:
        hint = _variant_hint(tensors, model.arch)
        raise CheckpointError(f'checkpoint {checkpoint} does not fit the model{hint}: {"; ".join(problems)}')
    loaded = {key: tensor for key, tensor in tensors.items() if key in expected}
    model.load_state_dict(loaded, strict=False)  # what is missing was judged above
    left_over = sorted({key.split('.')[0] for key in tensors.keys() - expected.keys()})
    return LoadReport(checkpoint, format_name, len(loaded), tuple(left_over))


def _misfits(tensors: StateDict, expected: Mapping[str, Tensor], model: CvTTrunk) -> list[str]:
    """What keeps tensors from covering a trunk: missing, misshapen or surplus ones, and non-finite values."""
    required = [k for k in expected if _TRUNK_KEY.match(k) and not k.endswith('.num_batches_tracked')]
    missing = [key for key in required if key not in tensors]
    misshapen = [
        f'{key} is {list(tensors[key].shape)}, not {list(tensor.shape)}'
        for key, tensor in expected.items()
        if key in tensors and tensors[key].shape != tensor.shape
    ]
    # A stage of the architecture that this model does not build may be left over, nothing else of a trunk may.
    not_built = range(model.num_stages, model.arch.num_stages)
    surplus = [
        key
        for key in tensors.keys() - expected.keys()
        if (match := _TRUNK_KEY.match(key)) and int(match.group(1)) not in not_built
    ]
    infinite = [key for key in expected if key in tensors and not tensors[key].isfinite().all()]
    lists = {
        'missing': missing,
        'misshapen': misshapen,
        'not in the model': sorted(surplus),
        'not finite': infinite,
    }
    return [f'{len(names)} {what} ({_some(names)})' for what, names in lists.items() if names]


def _some(names: list[str]) -> str:
    return ', '.join(names[:_NAMED]) + (', …' if len(names) > _NAMED else '')


def _variant_hint(tensors: StateDict, wanted: Arch) -> str:
    """Name the variant that the tensors are of, if it is a known one and not the one wanted."""
    found = _variant(_depths(tensors), [tensors.get(f'stage{i}.patch_embed.proj.weight') for i in range(3)])
    asked = next((name for name, arch in ARCHS.items() if arch == wanted), 'another architecture')
    return f" (these are {found}'s; the config asks for {asked})" if found and found != asked else ''


def _variant(depths: tuple[int, ...], embeddings: Iterable[Tensor | None]) -> str | None:
    dims = tuple(weight.shape[0] for weight in embeddings if weight is not None and weight.ndim)
    return next((name for name, a in ARCHS.items() if (a.depths, a.embed_dims) == (depths, dims)), None)


def _depths(tensors: StateDict) -> tuple[int, ...]:
    blocks = {m.groups() for key in tensors if (m := re.match(r'^stage(\d+)\.blocks\.(\d+)\.', key))}
    stages = sorted({stage for stage, _ in blocks})
    return tuple(sum(stage == s for s, _ in blocks) for stage in stages)
