"""The layers of CMT (arXiv 2107.06263, section 3), under the parameter names of the published weights.

Tokens are channels-last, ``(N, L, C)``, and convolutions read them as a map through a view. Tokens of images of several
sizes are in one row, ``(1, T, C)``, see :mod:`cvt_dense.models.layout`. Maps are in parts, batches of images of one
size: ``(n_i, C, H_i, W_i)`` each.
"""

# No annotations from __future__ here: torch.jit cannot read them any more once torch.fx has traced a model.

import torch
from torch import nn

from ..attention import attend
from ..blocks import ResidualBlock
from ..folding import convolved_and_normalised, normalised_and_convolved
from ..layout import Layout, pack, to_maps, token_counts, unpack
from ..norms import keeps_statistics, normalised_at_the_end, normalised_maps
from ..plain import is_plain
from ..tokens import Size, map_to_tokens
from ..window_layout import WindowLayout
from ..windows import attend_in_windows
from .position_bias import PositionChannels, with_position, without_position

#: Of the LayerNorms in blocks; those of the embeddings have another one.
NORM_EPS = 1e-6

torch.fx.wrap('attend_in_windows')  # what depends on a map's size is left open in a trace of torch.fx


class SubSampling(nn.Sequential):
    """What keys and values have in common: a depth-wise convolution without padding, and BatchNorm (section 3.3)."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__(nn.Conv2d(dim, dim, stride, stride, groups=dim), nn.BatchNorm2d(dim))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Compute the ``(n_i, dim, H_i // stride, W_i // stride)`` maps of keys."""
        if torch.jit.is_scripting():
            return [self[1](self[0](x)) for x in maps]
        if self[1].training and keeps_statistics(self[1]):
            return normalised_maps(self[1], [self[0](x) for x in maps])
        return [convolved_and_normalised(self[0], self[1], x) for x in maps]


class Attention(nn.Module):
    """Lightweight multi-head self-attention with a position bias (section 3.3).

    Args:
        dim: Channels of the tokens.
        num_heads: Heads that they are split into.
        kv_stride: Stride of the convolution of keys and values; none for 1.
        window_size: Side of the windows that queries attend within, in tokens; None for the whole map.

    Attributes:
        with_bias: False leaves the position bias out, to count or to time what it costs.
        with_cls_token: False: there is none.
        partial_keys: As :class:`~cvt_dense.models.window_layout.WindowLayout` has it.
    """

    with_cls_token = False
    partial_keys = False

    def __init__(self, dim: int, num_heads: int, kv_stride: int, window_size: int | None = None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.kv_stride = kv_stride
        self.window_size = window_size
        self.with_bias = True
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.sr = SubSampling(dim, kv_stride) if kv_stride > 1 else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, layout: Layout, positions: list[PositionChannels]) -> torch.Tensor:
        """Attend, each image to itself.

        Args:
            tokens: ``(N, L, dim)``, of maps as laid out.
            layout: Of the maps.
            positions: The position bias of each part; empty for none.

        Returns:
            Tokens of the same shape.
        """
        query = unpack(self.q(tokens), layout.counts, token_counts(layout, 0))
        key_maps = to_maps(tokens, layout, 0)
        if self.sr is not None:
            key_maps = self.sr(key_maps)
        lengths = [x.shape[2] * x.shape[3] for x in key_maps]
        reduced = pack([map_to_tokens(x) for x in key_maps])
        key = unpack(self.k(reduced), layout.counts, lengths)
        value = unpack(self.v(reduced), layout.counts, lengths)
        attended: list[torch.Tensor] = []
        for i, size in enumerate(layout.sizes):
            if len(positions) > 0:
                q, k, v = with_position(query[i], key[i], value[i], self.num_heads, self.scale, positions[i])
                x = self._attend(q, k, v, 1.0, size)
                attended.append(without_position(x, self.num_heads, query[i].shape[-1] // self.num_heads))
            else:
                attended.append(self._attend(query[i], key[i], value[i], self.scale, size))
        return self.proj(pack(attended))

    def window(self) -> int:
        """Side of the windows, 0 for the whole map."""
        return 0 if self.window_size is None else self.window_size

    def projections(self) -> tuple[nn.Module, nn.Module]:
        """The modules whose outputs are the queries and the keys."""
        return self.q, self.k

    def products(
        self, query: torch.Tensor, key: torch.Tensor, size: Size, place: Size, positions: list[PositionChannels]
    ) -> torch.Tensor:
        """One query's dot products with the keys of its image and its position bias, as the softmax takes them.

        Args:
            query: All queries of the image, ``(H * W, dim)``.
            key: All of its keys, ``(Hk * Wk, dim)``.
            size: ``(H, W)``.
            place: Row and column of the query.
            positions: As :meth:`forward` takes them, of this image alone.

        Returns:
            ``(heads, Hk * Wk)``.
        """
        index = place[0] * size[1] + place[1]
        one, keys = query[index].unflatten(0, (self.num_heads, -1)), key.unflatten(1, (self.num_heads, -1))
        products = self.scale * torch.einsum('hc,khc->hk', one, keys)
        for position in positions:
            products = products + position.query[index] @ position.key.t()
        return products

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, size: Size
    ) -> torch.Tensor:
        if self.window_size is None:
            return attend(query, key, value, self.num_heads, scale)
        windows = WindowLayout(size, self.kv_stride, self.window_size, 0, False)  # partial_keys, which torch.jit lacks
        return attend_in_windows(query, key, value, self.num_heads, scale, windows)


class ConvMlp(nn.Module):
    """Inverted residual feed-forward network (section 3.4): a depth-wise convolution between two of 1x1.

    BatchNorm stands behind the activation, so only those around the last convolution are computed as a part of it.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(dim, hidden_dim, 1), nn.GELU(), nn.BatchNorm2d(hidden_dim))
        self.proj = nn.Conv2d(hidden_dim, hidden_dim, kernel_size=3, padding=1, groups=hidden_dim)
        self.act = nn.GELU()
        self.proj_bn = nn.BatchNorm2d(hidden_dim)
        self.conv2 = nn.Sequential(nn.Conv2d(hidden_dim, dim, 1), nn.BatchNorm2d(dim))

    def forward(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Transform the ``(n_i, dim, H_i, W_i)`` map of each part to one of the same shape."""
        if torch.jit.is_scripting():
            maps = [self.conv1(x) for x in maps]
            maps = [self.act(self.proj(x) + x) for x in maps]
            return [self.conv2(self.proj_bn(x)) for x in maps]
        maps = normalised_at_the_end(self.conv1, maps)
        maps = [self.act(self.proj(x) + x) for x in maps]
        return self._project(maps)

    def _project(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        if is_plain(self.conv2, nn.Sequential):
            folded = [normalised_and_convolved(self.proj_bn, self.conv2[0], self.conv2[1], x) for x in maps]
            known = [x for x in folded if x is not None]
            if len(known) == len(maps):
                return known
        return normalised_at_the_end(self.conv2, normalised_maps(self.proj_bn, maps))


class Block(ResidualBlock):
    """CMT block (figure 2c): local perception unit, attention and feed-forward network, each in a residual branch."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        kv_stride: int,
        drop_path: float,
        window_size: int | None = None,
    ) -> None:
        super().__init__(drop_path)
        self.proj = nn.Conv2d(dim, dim, kernel_size=3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, kv_stride, window_size)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: torch.Tensor, layout: Layout, positions: list[PositionChannels]) -> torch.Tensor:
        """Transform ``(N, L, dim)`` tokens of maps as laid out to tokens of the same shape.

        Args:
            tokens: The tokens.
            layout: Of the maps.
            positions: As :class:`Attention` takes them.
        """
        maps = [self.proj(x) for x in to_maps(tokens, layout, 0)]
        tokens = tokens + pack([map_to_tokens(x) for x in maps])
        tokens = tokens + self.drop(self.attn(self.norm1(tokens), layout, positions), layout, 0)
        maps = self.mlp(to_maps(self.norm2(tokens), layout, 0))
        return tokens + self.drop(pack([map_to_tokens(x) for x in maps]), layout, 0)
