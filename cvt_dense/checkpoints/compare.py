"""Compare the tensors of a checkpoint with those that a model expects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Mismatch:
    """What keeps tensors from fitting a model, by name and in the model's order.

    Attributes:
        missing: Required, and not there.
        misshapen: Of another shape than the model's.
        infinite: With values that are not finite.
    """

    missing: tuple[str, ...]
    misshapen: tuple[str, ...]
    infinite: tuple[str, ...]


def compare(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], required: Iterable[str] | None = None
) -> Mismatch:
    """Compare tensors with a model's.

    Args:
        tensors: Under the model's names; others among them are ignored.
        expected: The model's state dict, which may be on the meta device.
        required: Names that must be there; by default all of the model's but BatchNorm's counters, which nothing
            computes with (as in :meth:`torch.nn.Module.load_state_dict`, files of older versions lack them).
    """
    wanted = set(expected if required is None else required)
    common = [name for name in expected if name in tensors]
    return Mismatch(
        missing=tuple(
            name
            for name in expected
            if name in wanted and name not in tensors and not name.endswith('num_batches_tracked')
        ),
        misshapen=tuple(name for name in common if tensors[name].shape != expected[name].shape),
        infinite=tuple(name for name in common if not tensors[name].isfinite().all()),
    )
