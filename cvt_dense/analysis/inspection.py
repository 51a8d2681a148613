"""Look into the stages: what their maps hold, and what one place of the image attends to in each block."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..models.layout import Layout
from ..models.stages import run_stages
from ..models.tokens import Size
from ..models.window_layout import cut, key_map_size

#: Hooks come and go one inspection at a time: torch numbers them without a lock.
_HOOKS = threading.Lock()


class Lattice(NamedTuple):
    """Where the tokens of a map lie in the image, on either axis.

    Attributes:
        stride: Pixels from one token's centre to the next one's.
        centre: The pixel that the first one is centred on.
    """

    stride: int
    centre: int

    def sampled(self, kernel_size: int, stride: int, padding: int) -> Lattice:
        """The lattice of what a convolution makes of a map."""
        return Lattice(self.stride * stride, self.centre + self.stride * (kernel_size - 1) // 2 - self.stride * padding)

    def nearest(self, pixel: Tensor, length: int) -> Tensor:
        """The token whose centre is nearest to a pixel, in 0 … ``length - 1``."""
        return ((pixel - self.centre + self.stride // 2) // self.stride).clamp(0, length - 1)


@dataclass(frozen=True)
class AttentionRow:
    """How much one query attends to each key, in one block.

    Attributes:
        weights: ``(heads, Hk, Wk)``, of the keys of the map; 0 outside of the query's window.
        cls_weights: ``(heads,)``, of the cls token; 0 in stages without one. With ``weights`` they sum up to 1.
        lattice: Of the keys.
    """

    weights: Tensor
    cls_weights: Tensor
    lattice: Lattice

    def keys_attended_to(self) -> Tensor:
        """``(heads,)``: the number of keys that equal weights would have to be spread over for the same entropy."""
        weights = torch.cat((self.cls_weights[:, None], self.weights.flatten(1)), dim=1)
        return torch.special.entr(weights).sum(1).exp()


@dataclass(frozen=True)
class StageView:
    """What a stage made of an image.

    Attributes:
        features: Its map, ``(C, H, W)``.
        lattice: Of its tokens.
        query: Row and column of the token whose attention was taken.
        attention: Its row in each block.
    """

    features: Tensor
    lattice: Lattice
    query: Size
    attention: tuple[AttentionRow, ...]


@torch.no_grad()
def inspect_stages(stages: Sequence[Any], image: Tensor, point: tuple[int, int]) -> list[StageView]:
    """Run stages on an image, and take each one's map and the attention of the token nearest to a point.

    Weights are computed for that one query, from the query and the keys that the model itself computes: memory grows
    with the number of keys. The modes of the model stay as they are; put it into eval mode before. Several threads may
    inspect one model, and others use it meanwhile.

    Args:
        stages: Of a trunk, a backbone or a timm model.
        image: ``(1, C, H, W)``, as the model takes it.
        point: Column and row of a pixel.

    Raises:
        ValueError: If there is not exactly one image, or the point lies outside of it.
    """
    (x, y), (height, width) = point, image.shape[2:]
    if len(image) != 1:
        raise ValueError(f'stages are inspected on one image at a time, got {len(image)}')
    if not (0 <= x < width and 0 <= y < height):
        raise ValueError(f'point {x}, {y} lies outside of the image, which has {width}x{height} pixels')
    lattices = _lattices(stages)
    rows: list[list[AttentionRow]] = [[] for _ in stages]
    recorders = [
        recorder
        for stage, lattice, rows_of_stage in zip(stages, lattices, rows)
        for block in stage.blocks
        for recorder in _recorders(block.attn, point, lattice, rows_of_stage)
    ]
    with _hooked(recorders):
        outputs = run_stages(stages, [image])
    return [
        StageView(features[0], lattice, _query_at(point, lattice, features.shape[2:]), tuple(rows_of_stage))
        for (_, (features,)), lattice, rows_of_stage in zip(outputs, lattices, rows)
    ]


def _lattices(stages: Sequence[Any]) -> list[Lattice]:
    lattice, lattices = Lattice(1, 0), []
    for stage in stages:
        for conv in stage.sampling():
            lattice = lattice.sampled(conv.kernel_size[0], conv.stride[0], conv.padding[0])
        lattices.append(lattice)
    return lattices


#: A module, and what is called with its arguments and its output.
Recorder = tuple[nn.Module, Any]


def _recorders(
    attention: Any, point: tuple[int, int], lattice: Lattice, rows: list[AttentionRow]
) -> tuple[Recorder, Recorder, Recorder]:
    """What appends the row of the token at a point to ``rows`` whenever a module attends."""
    projected: dict[str, Tensor] = {}

    def keep_query(args: Any, output: Tensor) -> None:
        projected['query'] = output[0]

    def keep_key(args: Any, output: Tensor) -> None:
        projected['key'] = output[0]

    def append_row(args: tuple[Tensor, Layout, Any], output: Tensor) -> None:
        size = args[1].sizes[0]
        place = _query_at(point, lattice, size)
        row = attention_row(attention, projected.pop('query'), projected.pop('key'), size, place, *args[2:])
        num_prefix = int(attention.with_cls_token)
        weights = row[:, num_prefix:].unflatten(1, key_map_size(size, attention.kv_stride, attention.partial_keys))
        rows.append(AttentionRow(weights, row[:, :num_prefix].sum(1), _lattice_of_keys(attention, lattice)))

    query, key = attention.projections()
    return (query, keep_query), (key, keep_key), (attention, append_row)


def _lattice_of_keys(attention: Any, queries: Lattice) -> Lattice:
    """Keys that are left over at the end of an axis come of a convolution with padding, whose kernel is odd."""
    stride = attention.kv_stride
    kernel_size = 1 if attention.partial_keys else stride
    return queries.sampled(kernel_size, stride, 0)


@contextmanager
def _hooked(recorders: Sequence[Recorder]) -> Iterator[None]:
    """Call recorders as their modules are called, by this thread alone."""
    thread = threading.get_ident()

    def hook_of(record: Any) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() == thread:
                record(args, output)

        return hook

    with _HOOKS:
        handles = [module.register_forward_hook(hook_of(record)) for module, record in recorders]
    try:
        yield
    finally:
        with _HOOKS:
            for handle in handles:
                handle.remove()


def attention_row(module: Any, query: Tensor, key: Tensor, size: Size, place: Size, *others: Any) -> Tensor:
    """Attention weights of one query: its row of the softmax that the fused kernels never write down.

    Args:
        module: The one that attends, of whatever family.
        query: All of its queries, ``(P + H * W, C)``; ``P`` is 1 with a cls token, else 0.
        key: All of its keys, ``(P + Hk * Wk, C)``.
        size: ``(H, W)``.
        place: Row and column of the query.
        others: What else its ``products`` takes.

    Returns:
        ``(heads, P + Hk * Wk)``; 0 for keys outside of the query's window.
    """
    products = module.products(query, key, size, place, *others)
    if module.window_size is not None:
        in_window = torch.zeros(
            key_map_size(size, module.kv_stride, module.partial_keys), dtype=torch.bool, device=key.device
        )
        in_window[_window(module, place[0], size[0]), _window(module, place[1], size[1])] = True
        is_seen = torch.cat((in_window.new_ones(int(module.with_cls_token)), in_window.flatten()))
        products = products.masked_fill(~is_seen, -torch.inf)
    return products.softmax(-1)


def _window(module: Any, place: int, length: int) -> slice:
    """The keys, along one axis, of the window that a query is in."""
    key, first = place // module.kv_stride, 0
    for number, _, keys in cut(length, module.window_size, module.kv_stride, module.partial_keys):
        end = first + number * keys
        if key < end:
            start = first + (key - first) // keys * keys
            return slice(start, start + keys)
        first = end
    return slice(end - keys, end)  # of queries that are left over at the end, without a key of their own


def _query_at(point: tuple[int, int], lattice: Lattice, size: Size) -> Size:
    x, y = torch.tensor(point)
    return int(lattice.nearest(y, size[0])), int(lattice.nearest(x, size[1]))


def to_pixels(x: Tensor, lattice: Lattice, size: Size) -> Tensor:
    """Spread a map over its image, to each pixel the value of the token nearest to it.

    Args:
        x: ``(..., h, w)``.
        lattice: Of its tokens.
        size: Of the image.

    Returns:
        ``(..., H, W)``.
    """
    rows, columns = (lattice.nearest(torch.arange(n), tokens) for n, tokens in zip(size, x.shape[-2:]))
    return x[..., rows, :][..., columns]


def principal_components(features: Tensor, count: int = 3) -> Tensor:
    """A map's first principal components, over the places of the map.

    Args:
        features: ``(C, H, W)``.
        count: How many, at most ``C``.

    Returns:
        ``(count, H, W)``, each scaled so that all but the outermost hundredths of its values lie in [0, 1], and those
        at 0 and 1.
    """
    centred = _centred(features)
    _, directions = torch.linalg.eigh(centred @ centred.T)  # eigenvalues rise
    components = directions[:, -count:].flip(1).T @ centred
    # A direction's sign is arbitrary; this one makes pictures of one map the same everywhere.
    components = components * components.pow(3).sum(1, keepdim=True).sign()
    low, high = components.quantile(torch.tensor([0.01, 0.99]).to(components), dim=1)[..., None]
    scaled = (components - low) / (high - low).clamp_min(torch.finfo(components.dtype).tiny)
    return scaled.clamp(0, 1).unflatten(1, features.shape[1:])


def effective_rank(features: Tensor) -> float:
    """Over how many directions the values of a ``(C, H, W)`` map spread: between 1 and C.

    The exponential of the entropy of the singular values (Roy and Vetterli, "The effective rank", EUSIPCO 2007), the
    mean over the map taken off.
    """
    centred = _centred(features)
    values = torch.linalg.eigvalsh(centred @ centred.T).clamp_min(0).sqrt()
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def _centred(features: Tensor) -> Tensor:
    tokens = features.flatten(1).double()
    return tokens - tokens.mean(1, keepdim=True)
