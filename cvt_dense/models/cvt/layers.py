"""The layers of CvT (arXiv 2103.15808, section 3), under the parameter names of the published weights.

Tokens are channels-last, ``(N, L, C)``, from one end of a stage to the other; a convolution reads them as a map
through a view, so no layout copies are made between a block's convolutions, norms and linear layers. Where a stage
has a cls token it is the first of the ``L``. Tokens of images of several sizes are in one row, ``(1, T, C)``, see
:mod:`cvt_dense.models.layout`.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from timm.layers import Mlp, QuickGELU
from torch import nn

from ..attention import attend
from ..blocks import ResidualBlock
from ..folding import convolved_and_normalised
from ..key_count import scale_by_key_count
from ..layout import Layout, pack, to_maps, token_counts, unpack
from ..norms import keeps_statistics, normalised_maps
from ..plain import is_idle, is_plain, is_plain_linear
from ..tokens import Size, map_to_tokens
from ..window_layout import WindowLayout
from ..windows import attend_in_windows

NORM_EPS = 1e-5

# What depends on a map's size is left open in a trace of torch.fx.
torch.fx.wrap('attend_in_windows')
torch.fx.wrap('scale_by_key_count')


class ConvProjection(nn.Sequential):
    """Depth-wise 3x3 convolution and BatchNorm in front of a linear projection (section 3.2).

    A BatchNorm that keeps its statistics is a scale and a shift of each channel, which go into the convolution's
    weights as they are used: one pass over the map instead of two, in training too. (Not in TorchScript, where
    ``torch.jit.freeze`` does it.)
    """

    def __init__(self, dim: int, stride: int) -> None:
        conv = nn.Conv2d(dim, dim, kernel_size=3, stride=stride, padding=1, groups=dim, bias=False)
        super().__init__(OrderedDict(conv=conv, bn=nn.BatchNorm2d(dim)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Project an ``(N, dim, H, W)`` map to ``(N, dim, ceil(H / stride), ceil(W / stride))``."""
        if not torch.jit.is_scripting():
            return convolved_and_normalised(self.conv, self.bn, x)
        return self.bn(self.conv(x))

    def project_parts(self, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """Project the map of each part of a batch, as :meth:`forward` does; BatchNorm sees all of them at once."""
        if not (self.bn.training and keeps_statistics(self.bn)):
            return [self(x) for x in maps]
        return normalised_maps(self.bn, [self.conv(x) for x in maps])


def project_parts(projection: nn.Module, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Project the map of each part of a batch by what may be there in place of a :class:`ConvProjection`."""
    if isinstance(projection, ConvProjection):
        return projection.project_parts(maps)
    return [projection(x) for x in maps]


class ConvAttention(nn.Module):
    """Multi-head self-attention with convolutional projections (section 3.2).

    The keys and values are sub-sampled by ``kv_stride``. A cls token takes part in the attention and is not convolved
    (section 3.3). The published weights were trained with dot products scaled by ``dim ** -0.5``, the embedding's
    width, and not the head's.

    Args:
        dim: Channels of the tokens.
        num_heads: Heads that they are split into.
        kv_stride: Stride of the convolution of keys and values; 1 without one.
        with_cls_token: Whether the first token is a cls token.
        window_size: Side of the windows that queries attend within, in tokens; None for the whole map. The
            convolutions see the whole map in either case.
        reference_keys: Number of keys that dot products are scaled relative to, see :meth:`scaled`; None for no such
            scale.
        projection: ``'conv'`` or ``'linear'``, as :class:`~cvt_dense.models.cvt.arch.Arch` has it.

    Attributes:
        partial_keys: As :class:`~cvt_dense.models.window_layout.WindowLayout` has it.
    """

    partial_keys = True

    def __init__(
        self,
        dim: int,
        num_heads: int,
        kv_stride: int,
        with_cls_token: bool,
        window_size: int | None = None,
        reference_keys: int | None = None,
        projection: str = 'conv',
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = dim**-0.5
        self.kv_stride = kv_stride
        self.window_size = window_size
        self.reference_keys = reference_keys
        self.with_cls_token = with_cls_token
        is_conv = projection == 'conv'
        self.conv_proj_q = ConvProjection(dim, stride=1) if is_conv else nn.Identity()
        self.conv_proj_k = ConvProjection(dim, stride=kv_stride) if is_conv else nn.Identity()
        self.conv_proj_v = ConvProjection(dim, stride=kv_stride) if is_conv else nn.Identity()
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Attend, each image to itself: ``(N, L, dim)`` tokens of maps as laid out to tokens of the same shape."""
        num_prefix = int(self.with_cls_token)
        parts = unpack(tokens, layout.counts, token_counts(layout, num_prefix))
        query_maps, key_maps, value_maps = self._project(to_maps(tokens, layout, num_prefix))
        queries = self._join(parts, query_maps)
        keys = self._join(parts, key_maps)
        values = self._join(parts, value_maps)
        key_lengths = [x.shape[1] for x in keys]
        query = unpack(self.proj_q(pack(queries)), layout.counts, [x.shape[1] for x in queries])
        key = unpack(self.proj_k(pack(keys)), layout.counts, key_lengths)
        value = unpack(self.proj_v(pack(values)), layout.counts, key_lengths)
        attended: list[torch.Tensor] = []
        for i, size in enumerate(layout.sizes):
            attended.append(self._attend(query[i], key[i], value[i], size))
        return self.proj(pack(attended))

    def _project(self, maps: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
        if not torch.jit.is_scripting():  # noqa: SIM102  torch.jit leaves out a branch by its condition alone
            if len(maps) > 1:
                return (
                    project_parts(self.conv_proj_q, maps),
                    project_parts(self.conv_proj_k, maps),
                    project_parts(self.conv_proj_v, maps),
                )
        return [self.conv_proj_q(maps[0])], [self.conv_proj_k(maps[0])], [self.conv_proj_v(maps[0])]

    def _join(self, parts: list[torch.Tensor], maps: list[torch.Tensor]) -> list[torch.Tensor]:
        """The tokens of projected maps, each with its part's cls token in front."""
        joined: list[torch.Tensor] = []
        for part, x in zip(parts, maps):
            tokens = map_to_tokens(x)
            if self.with_cls_token:
                tokens = torch.cat((part[:, :1].to(tokens.dtype), tokens), dim=1)
            joined.append(tokens)
        return joined

    def scaled(self, query: torch.Tensor, key: torch.Tensor, size: Size) -> torch.Tensor:
        """Queries as they meet the keys: scaled by how many keys there are, if that is asked for.

        Args:
            query: ``(N, P + H * W, dim)``; ``P`` is 1 with a cls token, else 0.
            key: ``(N, P + Hk * Wk, dim)``.
            size: ``(H, W)``.
        """
        if self.reference_keys is None:
            return query
        num_prefix = int(self.with_cls_token)
        return scale_by_key_count(query, key, self.reference_keys, size, self.kv_stride, self.window_size, num_prefix)

    def projections(self) -> tuple[nn.Module, nn.Module]:
        """The modules whose outputs are the queries and the keys."""
        return self.proj_q, self.proj_k

    def products(self, query: torch.Tensor, key: torch.Tensor, size: Size, place: Size) -> torch.Tensor:
        """One query's dot products with the keys of its image, as the softmax takes them.

        Args:
            query: All queries of the image, ``(P + H * W, dim)``.
            key: All of its keys, ``(P + Hk * Wk, dim)``.
            size: ``(H, W)``.
            place: Row and column of the query.

        Returns:
            ``(heads, P + Hk * Wk)``.
        """
        (query,) = self.scaled(query[None], key[None], size)
        one = query[int(self.with_cls_token) + place[0] * size[1] + place[1]].unflatten(0, (self.num_heads, -1))
        return self.scale * torch.einsum('hc,khc->hk', one, key.unflatten(1, (self.num_heads, -1)))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, size: Size) -> torch.Tensor:
        query = self.scaled(query, key, size)
        if self.window_size is None:
            return attend(query, key, value, self.num_heads, self.scale)
        windows = WindowLayout(size, self.kv_stride, self.window_size, int(self.with_cls_token))
        return attend_in_windows(query, key, value, self.num_heads, self.scale, windows)


class QuickGELUMlp(Mlp):
    """The MLP of a block, with QuickGELU: ``x * sigmoid(1.702 x)``.

    Its hidden units are the largest tensors of the model, so going over them costs more than it computes. SiLU of
    ``1.702 x`` is 1.702 times QuickGELU of ``x`` in one pass, and matrix products scale their outcome for free.
    """

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__(dim, hidden_dim, act_layer=QuickGELU)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform ``(N, L, dim)`` tokens to tokens of the same shape."""
        if not torch.jit.is_scripting():  # noqa: SIM102  as above
            if self._is_plain():
                tokens, slope = x.flatten(0, 1), 1.702
                hidden = torch.addmm(self.fc1.bias, tokens, self.fc1.weight.t(), beta=slope, alpha=slope)
                hidden = F.silu(hidden, inplace=not torch.is_grad_enabled())
                return torch.addmm(self.fc2.bias, hidden, self.fc2.weight.t(), alpha=1 / slope).view(x.shape)
        return self.drop2(self.fc2(self.norm(self.drop1(self.act(self.fc1(x))))))

    @torch.jit.ignore
    def _is_plain(self) -> bool:
        return (
            is_plain_linear(self.fc1)
            and is_plain(self.act, QuickGELU)
            and is_idle(self.drop1)
            and is_idle(self.norm)
            and is_plain_linear(self.fc2)
            and is_idle(self.drop2)
        )


class Block(ResidualBlock):
    """Convolutional transformer block: pre-norm attention and MLP, each in a residual branch (figure 2b)."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        kv_stride: int,
        drop_path: float,
        with_cls_token: bool,
        window_size: int | None = None,
        reference_keys: int | None = None,
        projection: str = 'conv',
    ) -> None:
        super().__init__(drop_path)
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ConvAttention(dim, num_heads, kv_stride, with_cls_token, window_size, reference_keys, projection)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        # The published weights were trained with QuickGELU; GELU is off by 0.3-2 % of a map's largest value.
        self.mlp = QuickGELUMlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Transform ``(N, L, dim)`` tokens of maps as laid out to tokens of the same shape."""
        num_prefix = int(self.attn.with_cls_token)
        tokens = tokens + self.drop(self.attn(self.norm1(tokens), layout), layout, num_prefix)
        return tokens + self.drop(self.mlp(self.norm2(tokens)), layout, num_prefix)
