"""What mmengine writes into a checkpoint beside the weights, for torch's safe unpickler to read, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


@contextmanager
def mmengine_types() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read the training history in checkpoints that mmengine wrote.

    Upstream mmengine cannot resume with torch 2.6 or later without this.
    """
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    dtypes = [type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)]
    # Pickles name these two by the module they came from, which NumPy 2 moved.
    functions = [
        (function, f'numpy.{core}.multiarray.{name}')
        for function, name in ((scalar, 'scalar'), (reconstruct, '_reconstruct'))
        for core in ('core', '_core')
    ]
    # A history names its own statistics through getattr, which is too powerful to be let through as it is.
    functions.append((_statistics_method, 'builtins.getattr'))
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions]):
        yield


def _statistics_method(owner: Any, name: str) -> Callable:
    if owner is not HistoryBuffer or name.startswith('_'):
        raise ValueError(f'refused to look up {name!r} while reading a checkpoint')
    return getattr(HistoryBuffer, name)
