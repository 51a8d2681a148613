"""What a checkpoint of a training run holds beside weights, and may be unpickled: its history and arguments alone."""

from __future__ import annotations

import pickle
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals


@contextmanager
def mmengine_types() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read the training history in checkpoints that mmengine wrote.

    And the ``argparse.Namespace`` that many training scripts put beside the weights, a bag of plain values.

    Upstream mmengine cannot resume with torch 2.6 or later without this. Where mmengine is not installed, only NumPy's
    scalars and arrays are let through.
    """
    scalar, reconstruct = np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0]
    dtypes = [type(np.dtype(t)) for t in (np.float32, np.float64, np.int32, np.int64, np.uint32, np.bool_)]
    # Pickles name these two by the module they came from, which NumPy 2 moved.
    allowed = [
        (function, f'numpy.{core}.multiarray.{name}')
        for function, name in ((scalar, 'scalar'), (reconstruct, '_reconstruct'))
        for core in ('core', '_core')
    ]
    if find_spec('mmengine'):
        from mmengine.logging import HistoryBuffer  # which weights from elsewhere are read without

        # A history names its own statistics through getattr, which is too powerful to be let through as it is.
        allowed += [HistoryBuffer, (_statistics_method, 'builtins.getattr')]
    # torch's own context manager forgets what an outer one had allowed.
    before = get_safe_globals()
    add_safe_globals([Namespace, np.ndarray, np.dtype, *dtypes, *allowed])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _statistics_method(owner: Any, name: str) -> Callable:
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'refused to look up {name!r} while reading a checkpoint')
    return getattr(HistoryBuffer, name)
