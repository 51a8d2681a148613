"""Read mmengine's own checkpoints safely: weights and the training history beside them, and nothing else."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

from .files import read


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
    # torch's own context manager forgets what an outer one had allowed.
    before = get_safe_globals()
    add_safe_globals([HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def load_checkpoints_safely() -> None:
    """Let mmengine, in this process, read checkpoints without running code that they carry.

    onedl-mmengine falls back to an unsafe load of whatever the safe one refuses; upstream mmengine cannot resume with
    torch 2.6 or later. Both read local files through :func:`read_checkpoint` from here on, and torch refuses unsafe
    loads whoever asks for them.
    """
    CheckpointLoader.register_scheme(prefixes='', loader=read_checkpoint, force=True)
    os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] = '1'


def read_checkpoint(filename: str, map_location: Any = None) -> Mapping[str, Any]:
    """Read a checkpoint that mmengine wrote.

    Args:
        filename: A local file.
        map_location: Ignored, mmengine's loaders have it: tensors come on the CPU, and whoever loads them into a model
            or an optimizer copies them to its device.

    Raises:
        CheckpointError: If there is no such file, or it is damaged, or it holds more than mmengine writes.
    """
    with mmengine_types():
        return read(Path(filename).expanduser())


def _statistics_method(owner: Any, name: str) -> Callable:
    if owner is not HistoryBuffer or name.startswith('_'):
        raise pickle.UnpicklingError(f'refused to look up {name!r} while reading a checkpoint')
    return getattr(HistoryBuffer, name)
