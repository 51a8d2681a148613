from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from golden import weight
from torch import nn

from cvt_dense.models.cmt.layers import Attention, Block, ConvMlp, SubSampling
from cvt_dense.models.layout import Layout
from cvt_dense.models.norms import keeps_statistics
from cvt_dense.models.stem import Stem


def drawn(module: nn.Module, training: bool = False) -> nn.Module:
    """With weights and statistics far from those of a fresh one, in double precision."""
    module.load_state_dict({key: weight(key, tuple(t.shape)) for key, t in module.state_dict().items()})
    return module.double().train(training)


def maps_of(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    return [torch.randn(shape, dtype=torch.double) for shape in shapes]


def plain_mlp(mlp: ConvMlp, x: torch.Tensor) -> torch.Tensor:
    """As the paper has it."""
    x = mlp.conv1[2](F.gelu(mlp.conv1[0](x)))
    return mlp.conv2[1](mlp.conv2[0](mlp.proj_bn(F.gelu(mlp.proj(x) + x))))


def assert_gradients_agree(ours: torch.Tensor, expected: torch.Tensor, module: nn.Module) -> None:
    direction = torch.randn_like(ours)
    names, parameters = zip(*module.named_parameters())
    gradients = [torch.autograd.grad(y, parameters, direction) for y in (ours, expected)]
    torch.testing.assert_close(ours, expected)
    for name, got, want in zip(names, *gradients):
        torch.testing.assert_close(got, want, msg=lambda m, name=name: f'{name}: {m}')


def test_norms_on_kept_statistics_are_a_part_of_the_last_convolution_of_an_mlp() -> None:
    mlp = drawn(ConvMlp(6, 10))
    calls: list[nn.Module] = []
    with torch.no_grad():
        (x,) = maps_of((2, 6, 5, 7))
        expected = plain_mlp(mlp, x)
        original = F.batch_norm
        F.batch_norm = lambda *args, **kwargs: (calls.append(args), original(*args, **kwargs))[1]
        try:
            (ours,) = mlp([x])
        finally:
            F.batch_norm = original
    torch.testing.assert_close(ours, expected)
    assert len(calls) == 1  # the one before the depth-wise convolution
    (ours,) = mlp([x])
    assert_gradients_agree(ours, plain_mlp(mlp, x), mlp)


def test_a_norm_on_kept_statistics_is_a_part_of_the_sub_sampling() -> None:
    sub_sampling = drawn(SubSampling(6, 3))
    (x,) = maps_of((2, 6, 10, 7))
    (ours,) = sub_sampling([x])
    assert ours.shape == (2, 6, 3, 2)
    assert_gradients_agree(ours, sub_sampling[1](sub_sampling[0](x)), sub_sampling)


@pytest.mark.parametrize('layer', [ConvMlp(6, 10), SubSampling(6, 2), Stem(6, 8)])
def test_norms_in_training_see_the_maps_of_all_sizes_once(layer: nn.Module) -> None:
    drawn(layer, training=True)
    maps = maps_of((2, 6, 8, 12), (1, 6, 8, 4))
    seen: dict[str, list[torch.Tensor]] = {}
    for name, module in layer.named_modules():
        if keeps_statistics(module):
            module.register_forward_hook(lambda module, args, out, name=name: seen.setdefault(name, []).append(out))
    assert [y.shape[0] for y in layer(maps)] == [2, 1]
    for normalised in seen.values():
        assert len(normalised) == 1  # all places of all images, in one call
        assert normalised[0].shape[0] * normalised[0].shape[2] * normalised[0].shape[3] % (2 * 12 + 4) == 0


@pytest.mark.parametrize('training', [True, False])
def test_images_of_one_size_may_be_in_several_parts(training: bool) -> None:
    """With the same outcome and gradients: as one batch, or in two parts of a row."""
    block = drawn(Block(6, 2, 2.5, 2, drop_path=0.0), training)
    x = torch.randn(3, 5 * 7, 6, dtype=torch.double)
    together = block(x, Layout([3], [(5, 7)]), [])
    apart = block(x.reshape(1, -1, 6), Layout([2, 1], [(5, 7), (5, 7)]), [])
    parameters = [p for name, p in block.named_parameters()]
    direction = torch.randn_like(together)
    torch.testing.assert_close(apart.view_as(together), together)
    for got, want in zip(
        torch.autograd.grad(apart, parameters, direction.view_as(apart)),
        torch.autograd.grad(together, parameters, direction),
    ):
        torch.testing.assert_close(got, want)


def test_dot_products_are_scaled_by_the_width_of_a_head() -> None:
    assert Attention(48, num_heads=3, kv_stride=2).scale == 16**-0.5


def test_keys_are_those_of_whole_strides() -> None:
    attention = Attention(6, 2, kv_stride=4).eval()
    keys: list[torch.Tensor] = []
    attention.k.register_forward_hook(lambda module, args, out: keys.append(out))
    attention(torch.randn(1, 9 * 11, 6), Layout([1], [(9, 11)]), [])
    assert keys[0].shape[1] == 2 * 2


class Wrapped(nn.Module):
    """A layer with something beside it, as adapters put there, and what the layer has in sight."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        for name in ('weight', 'bias', 'stride', 'padding', 'dilation', 'groups', 'padding_mode'):
            if hasattr(layer, name):
                setattr(self, name, getattr(layer, name))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + 1


@pytest.mark.parametrize(
    'name',
    [
        'proj',
        *('attn.q', 'attn.sr.0', 'attn.sr.1'),
        *('mlp.conv1', 'mlp.conv1.2', 'mlp.proj', 'mlp.proj_bn', 'mlp.conv2.0', 'mlp.conv2.1', 'mlp.conv2'),
    ],
)
def test_layers_that_were_wrapped_are_called_as_they_are(name: str) -> None:
    block = drawn(Block(8, 2, 4, 2, drop_path=0.0))
    tokens, layout = torch.randn(1, 12, 8, dtype=torch.double), Layout([1], [(3, 4)])
    with torch.no_grad():
        plain = block(tokens, layout, [])
        parent, _, child = name.rpartition('.')
        setattr(block.get_submodule(parent), child, Wrapped(block.get_submodule(name)))
        assert not torch.allclose(block(tokens, layout, []), plain, atol=1e-3)
