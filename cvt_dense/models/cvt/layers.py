"""The layers of CvT (arXiv 2103.15808, section 3), under the parameter names of the published weights.

Tokens are channels-last, ``(N, L, C)``, from one end of a stage to the other; a convolution reads them as a map
through a view, so no layout copies are made between a block's convolutions, norms and linear layers. Where a stage
has a cls token it is the first of the ``L``.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, QuickGELU
from torch import nn

from ..attention import attend
from ..plain import is_foldable, is_idle, is_plain, is_plain_linear
from ..tokens import Size, map_to_tokens, tokens_to_map
from ..window_layout import WindowLayout
from ..windows import attend_in_windows

NORM_EPS = 1e-5

torch.fx.wrap('attend_in_windows')  # how a map is cut depends on its size, which a trace of torch.fx leaves open


class ConvEmbed(nn.Module):
    """Convolutional token embedding (section 3.1): a strided convolution, then LayerNorm over the channels.

    Args:
        in_channels: Channels of the map that comes in.
        embed_dim: Channels of the tokens that come out.
        kernel_size: Side of the convolution's kernel, in pixels.
        stride: Down-sampling factor.
        padding: Zeros added on each side.
    """

    def __init__(self, in_channels: int, embed_dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(embed_dim, eps=NORM_EPS)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, Size]:
        """Embed an ``(N, C, H, W)`` map: its ``(N, H' * W', embed_dim)`` tokens and ``(H', W')``."""
        x = self.proj(x.contiguous(memory_format=torch.channels_last))
        return self.norm(map_to_tokens(x)), (x.shape[2], x.shape[3])


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
        if not torch.jit.is_scripting():  # noqa: SIM102  torch.jit leaves out a branch by its condition alone
            if is_foldable(self.conv, self.bn):
                scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
                weight = self.conv.weight * scale[:, None, None, None]
                bias = self.bn.bias - self.bn.running_mean * scale
                conv = self.conv
                return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return self.bn(self.conv(x))


class ConvAttention(nn.Module):
    """Multi-head self-attention with convolutional projections (section 3.2).

    The keys and values are sub-sampled by ``kv_stride``. A cls token takes part in the attention and is not convolved
    (section 3.3). The published weights were trained with dot products scaled by ``dim ** -0.5``, the embedding's
    width, and not the head's.

    Args:
        dim: Channels of the tokens.
        num_heads: Heads that they are split into.
        kv_stride: Stride of the convolution of keys and values.
        with_cls_token: Whether the first token is a cls token.
        window_size: Side of the windows that queries attend within, in tokens; None for the whole map. The
            convolutions see the whole map in either case.
    """

    def __init__(
        self, dim: int, num_heads: int, kv_stride: int, with_cls_token: bool, window_size: int | None = None
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = dim**-0.5
        self.kv_stride = kv_stride
        self.window_size = window_size
        self.with_cls_token = with_cls_token
        self.conv_proj_q = ConvProjection(dim, stride=1)
        self.conv_proj_k = ConvProjection(dim, stride=kv_stride)
        self.conv_proj_v = ConvProjection(dim, stride=kv_stride)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """Attend: ``(N, L, dim)`` tokens of a map of ``size`` to tokens of the same shape."""
        num_prefix = int(self.with_cls_token)
        cls_token, x = tokens[:, :num_prefix], tokens_to_map(tokens[:, num_prefix:], size)
        query = self.proj_q(self._join(cls_token, self.conv_proj_q(x)))
        key = self.proj_k(self._join(cls_token, self.conv_proj_k(x)))
        value = self.proj_v(self._join(cls_token, self.conv_proj_v(x)))
        if self.window_size is None:
            attended = attend(query, key, value, self.num_heads, self.scale)
        else:
            layout = WindowLayout(size, self.kv_stride, self.window_size, num_prefix)
            attended = attend_in_windows(query, key, value, self.num_heads, self.scale, layout)
        return self.proj(attended)

    def _join(self, cls_token: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        tokens = map_to_tokens(x)
        return torch.cat((cls_token.to(tokens.dtype), tokens), dim=1) if self.with_cls_token else tokens


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


class Block(nn.Module):
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
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=NORM_EPS)
        self.attn = ConvAttention(dim, num_heads, kv_stride, with_cls_token, window_size)
        self.norm2 = nn.LayerNorm(dim, eps=NORM_EPS)
        # The published weights were trained with QuickGELU; GELU is off by 0.3-2 % of a map's largest value.
        self.mlp = QuickGELUMlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: torch.Tensor, size: Size) -> torch.Tensor:
        """Transform ``(N, L, dim)`` tokens of a map of ``size`` to tokens of the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), size))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))
