"""Look into the stages: what their maps hold, and what one place of the image attends to in each block."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from torch import Tensor

from ..models.cvt.layers import ConvAttention
from ..models.cvt.trunk import Stage
from ..models.layout import Layout
from ..models.stages import run_stages
from ..models.tokens import Size
from ..models.window_layout import cut, key_map_size

#: Centre of the first token of every stage, in pixels from the image's first one: the first embedding has a kernel of
#: 7 and a padding of 2. All later convolutions are centred on tokens, so the others follow at multiples of the stride.
FIRST_CENTRE = 1


@dataclass(frozen=True)
class AttentionRow:
    """How much one query attends to each key, in one block.

    Attributes:
        weights: ``(heads, Hk, Wk)``, of the keys of the map; 0 outside of the query's window.
        cls_weights: ``(heads,)``, of the cls token; 0 in stages without one. With ``weights`` they sum up to 1.
        stride: Pixels of the image from one key to the next.
    """

    weights: Tensor
    cls_weights: Tensor
    stride: int

    def keys_attended_to(self) -> Tensor:
        """``(heads,)``: the number of keys that equal weights would have to be spread over for the same entropy."""
        weights = torch.cat((self.cls_weights[:, None], self.weights.flatten(1)), dim=1)
        return torch.special.entr(weights).sum(1).exp()


@dataclass(frozen=True)
class StageView:
    """What a stage made of an image.

    Attributes:
        features: Its map, ``(C, H, W)``.
        stride: Pixels of the image from one token to the next.
        query: Row and column of the token whose attention was taken.
        attention: Its row in each block.
    """

    features: Tensor
    stride: int
    query: Size
    attention: tuple[AttentionRow, ...]


@torch.no_grad()
def inspect_stages(stages: Sequence[Stage], image: Tensor, point: tuple[int, int]) -> list[StageView]:
    """Run stages on an image, and take each one's map and the attention of the token nearest to a point.

    Weights are computed for that one query, from the query and the keys that the model itself computes: memory grows
    with the number of keys. The modes of the model stay as they are; put it into eval mode before.

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
    strides = list(accumulate((stage.patch_embed.proj.stride[0] for stage in stages), mul))
    rows: list[list[AttentionRow]] = [[] for _ in stages]
    with ExitStack() as hooks:
        for stage, stride, rows_of_stage in zip(stages, strides, rows):
            for block in stage.blocks:
                _record_row(block.attn, point, stride, rows_of_stage, hooks)
        outputs = run_stages(stages, [image])
    return [
        StageView(features[0], stride, _query_at(point, stride, features.shape[2:]), tuple(rows_of_stage))
        for (_, (features,)), stride, rows_of_stage in zip(outputs, strides, rows)
    ]


def _record_row(
    attention: ConvAttention, point: tuple[int, int], stride: int, rows: list[AttentionRow], hooks: ExitStack
) -> None:
    """Append the row of the token at a point to ``rows`` whenever a module attends, as long as ``hooks`` is open."""
    projected: dict[str, Tensor] = {}

    def keep_query(module: Any, args: Any, output: Tensor) -> None:
        projected['query'] = output[0]

    def keep_key(module: Any, args: Any, output: Tensor) -> None:
        projected['key'] = output[0]

    def append_row(module: ConvAttention, args: tuple[Tensor, Layout], output: Tensor) -> None:
        size = args[1].sizes[0]
        row = attention_row(module, projected.pop('query'), projected.pop('key'), size, _query_at(point, stride, size))
        num_prefix = int(module.with_cls_token)
        weights = row[:, num_prefix:].unflatten(1, key_map_size(size, module.kv_stride))
        rows.append(AttentionRow(weights, row[:, :num_prefix].sum(1), stride * module.kv_stride))

    hooks.enter_context(attention.proj_q.register_forward_hook(keep_query))
    hooks.enter_context(attention.proj_k.register_forward_hook(keep_key))
    hooks.enter_context(attention.register_forward_hook(append_row))


def attention_row(module: ConvAttention, query: Tensor, key: Tensor, size: Size, position: Size) -> Tensor:
    """Attention weights of one query: its row of the softmax that the fused kernels never write down.

    Args:
        module: The one that attends.
        query: All of its queries, ``(P + H * W, C)``; ``P`` is 1 with a cls token, else 0.
        key: All of its keys, ``(P + Hk * Wk, C)``.
        size: ``(H, W)``.
        position: Row and column of the query.

    Returns:
        ``(heads, P + Hk * Wk)``; 0 for keys outside of the query's window.
    """
    num_prefix = int(module.with_cls_token)
    (query,) = module.scaled(query[None], key[None], size)
    one = query[num_prefix + position[0] * size[1] + position[1]].unflatten(0, (module.num_heads, -1))
    keys = key.unflatten(1, (module.num_heads, -1))
    products = module.scale * torch.einsum('hc,khc->hk', one, keys)
    if module.window_size is not None:
        in_window = torch.zeros(key_map_size(size, module.kv_stride), dtype=torch.bool, device=key.device)
        row, column = (
            _window(place, length, module.window_size, module.kv_stride) for place, length in zip(position, size)
        )
        in_window[row, column] = True
        is_seen = torch.cat((in_window.new_ones(num_prefix), in_window.flatten()))
        products = products.masked_fill(~is_seen, -torch.inf)
    return products.softmax(-1)


def _window(position: int, length: int, window_size: int, kv_stride: int) -> slice:
    """The keys, along one axis, of the window that a query is in."""
    first = 0
    for number, _, keys in cut(length, window_size, kv_stride):
        index = (position // kv_stride - first) // keys
        if index < number:
            return slice(first + index * keys, first + (index + 1) * keys)
        first += number * keys
    raise ValueError(f'there is no query {position} among {length}')


def nearest_token(pixel: Tensor, stride: int, length: int) -> Tensor:
    """The token, along one axis, whose centre is nearest to a pixel: in 0 … ``length - 1``."""
    return ((pixel - FIRST_CENTRE + stride // 2) // stride).clamp(0, length - 1)


def _query_at(point: tuple[int, int], stride: int, size: Size) -> Size:
    x, y = torch.tensor(point)
    return int(nearest_token(y, stride, size[0])), int(nearest_token(x, stride, size[1]))


def to_pixels(x: Tensor, stride: int, size: Size) -> Tensor:
    """Spread a map over its image, to each pixel the value of the token nearest to it.

    Args:
        x: ``(..., h, w)``.
        stride: Pixels from one token to the next.
        size: Of the image.

    Returns:
        ``(..., H, W)``.
    """
    rows, columns = (nearest_token(torch.arange(n), stride, tokens) for n, tokens in zip(size, x.shape[-2:]))
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
