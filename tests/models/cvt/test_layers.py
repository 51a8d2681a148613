from __future__ import annotations

import pytest
import torch
from timm.layers import Mlp, QuickGELU
from torch import nn

from cvt_dense.models.cvt.layers import Block, ConvAttention, ConvProjection, QuickGELUMlp
from cvt_dense.models.layout import Layout

LAYOUT = Layout([1], [(3, 4)])  # one image


def test_keys_and_values_are_sub_sampled_by_their_stride() -> None:
    attention = ConvAttention(8, num_heads=2, kv_stride=3, with_cls_token=False)
    x = torch.randn(1, 8, 7, 10)
    assert attention.conv_proj_q(x).shape[2:] == (7, 10)
    assert attention.conv_proj_k(x).shape[2:] == attention.conv_proj_v(x).shape[2:] == (3, 4)


def test_dot_products_are_scaled_by_the_embedding_width() -> None:
    assert ConvAttention(48, num_heads=3, kv_stride=2, with_cls_token=False).scale == 48**-0.5


def test_the_cls_token_is_not_convolved_but_attended_to() -> None:
    block = Block(8, 2, mlp_ratio=4, kv_stride=2, drop_path=0.0, with_cls_token=True).eval()
    tokens = torch.randn(1, 13, 8)
    changed = tokens.clone()
    changed[:, 0] += torch.randn(8)
    attention = block.attn
    maps = []
    attention.conv_proj_q.register_forward_hook(lambda module, args, out: maps.append(args[0].clone()))
    with torch.no_grad():
        out, out_changed = attention(tokens, LAYOUT), attention(changed, LAYOUT)
    assert torch.equal(maps[0], maps[1])
    assert not torch.allclose(out[:, 1:], out_changed[:, 1:], atol=1e-6)


@pytest.mark.parametrize('stride', [1, 2])
def test_a_batch_norm_that_keeps_its_statistics_is_part_of_the_convolution(stride: int) -> None:
    projection = ConvProjection(6, stride).double()
    projection.bn.load_state_dict(
        {key: torch.rand_like(t, dtype=torch.double) for key, t in projection.bn.state_dict().items()}
    )
    projection.bn.eval()
    x = torch.randn(2, 6, 7, 9, dtype=torch.double, requires_grad=True)
    parameters = [x, projection.conv.weight, projection.bn.weight, projection.bn.bias]
    ours, expected = projection(x), projection.bn(projection.conv(x))
    torch.testing.assert_close(ours, expected)
    direction = torch.randn_like(ours)
    for got, want in zip(
        torch.autograd.grad(ours, parameters, direction), torch.autograd.grad(expected, parameters, direction)
    ):
        torch.testing.assert_close(got, want)


def test_a_batch_norm_in_training_normalises_by_the_batch() -> None:
    projection = ConvProjection(6, 1).train()
    out = projection(3 + torch.randn(2, 6, 7, 9))
    torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    assert projection.bn.num_batches_tracked == 1


def test_the_mlp_and_its_gradients_are_those_of_timm_with_quick_gelu() -> None:
    ours = QuickGELUMlp(6, 24).double()
    plain = Mlp(6, 24, act_layer=QuickGELU).double()
    plain.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 6, dtype=torch.double, requires_grad=True)
    direction = torch.randn(2, 5, 6, dtype=torch.double)
    torch.testing.assert_close(ours(x), plain(x))
    wanted = torch.autograd.grad(plain(x), [x, *plain.parameters()], direction)
    for got, want in zip(torch.autograd.grad(ours(x), [x, *ours.parameters()], direction), wanted):
        torch.testing.assert_close(got, want)
    before = x.detach().clone()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x))
    assert torch.equal(x, before)


class Wrapped(nn.Module):
    """A layer with something beside it, as adapters put there, and the weights of the layer in sight."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 1


@pytest.mark.parametrize('name', ['mlp.fc1', 'mlp.fc2', 'attn.conv_proj_v.conv', 'attn.proj_v'])
def test_layers_that_were_wrapped_are_called_as_they_are(name: str) -> None:
    block = Block(8, 2, mlp_ratio=4, kv_stride=2, drop_path=0.0, with_cls_token=False).eval()
    tokens = torch.randn(1, 12, 8)
    with torch.no_grad():
        plain = block(tokens, LAYOUT)
        parent, _, child = name.rpartition('.')
        setattr(block.get_submodule(parent), child, Wrapped(block.get_submodule(name)))
        assert not torch.allclose(block(tokens, LAYOUT), plain, atol=1e-3)


@pytest.mark.parametrize('training', [True, False])
def test_maps_of_several_sizes_are_projected_as_one_batch_with_the_right_gradients(training: bool) -> None:
    torch.manual_seed(0)
    projection = ConvProjection(4, stride=2).double().train(training)
    projection.bn.running_var.uniform_(0.5, 2)
    maps = [torch.randn(n, 4, h, w, dtype=torch.double, requires_grad=True) for n, h, w in ((2, 3, 5), (1, 4, 1))]
    ours = projection.project_parts([x.contiguous(memory_format=torch.channels_last) for x in maps])
    convolved = [projection.conv(x) for x in maps]
    places = torch.cat([x.transpose(0, 1).flatten(1) for x in convolved], dim=1)
    norm = projection.bn
    mean, var = (places.mean(1), places.var(1, unbiased=False)) if training else (norm.running_mean, norm.running_var)
    scale = norm.weight * torch.rsqrt(var + norm.eps)
    expected = [(x - mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None] for x in convolved]
    directions = [torch.randn_like(x) for x in expected]
    inputs = [*maps, projection.conv.weight, norm.weight, norm.bias]
    gradients = [torch.autograd.grad(outputs, inputs, directions) for outputs in (ours, expected)]
    for got, want in (*zip(ours, expected, strict=True), *zip(*gradients, strict=True)):
        torch.testing.assert_close(got, want)
