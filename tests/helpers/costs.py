"""What a computation costs, in numbers that do not depend on the machine."""

from __future__ import annotations

import weakref
from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_FREE = {'view', '_unsafe_view', 'expand', 'permute', 'transpose', 't', 'slice', 'select', 'unsqueeze', 'squeeze'}
_FREE |= {'alias', 'detach', 'split', 'unbind', 'as_strided', 'empty_like'}


class Costs(TorchDispatchMode):
    """Records the operations of what runs inside, backward passes included.

    Attributes:
        kernels: How often each operation ran, views left out.
        largest: Elements of the largest tensor that any operation made.
        peak_bytes: The most memory that tensors made inside took at one time, without kernels' own scratch space.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.largest = 0
        self.peak_bytes = 0
        self._live_bytes = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, torch.Tensor):
                self._known.add(tensor.untyped_storage()._cdata)  # also what was there before
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name not in _FREE:
            self.kernels[name] += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
                self._track(tensor.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self._live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self._live_bytes)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._live_bytes -= size
