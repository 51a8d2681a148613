from __future__ import annotations

import pytest
import torch
from torch import nn

from cvt_dense.analysis.flops import count_macs


class Pixels(nn.Module):
    """Pixels as tokens, ``(N, H * W, C)``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Attention between all pixels and every second one, in heads of given width; its one parameter does no work."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.dummy = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3)
        keys = tokens[:, :, ::2]
        return nn.functional.scaled_dot_product_attention(tokens, keys, keys)


@pytest.mark.parametrize('bias', [True, False])
def test_a_convolution_and_a_linear_layer_count_as_in_the_tables(bias: bool) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=2, padding=2, bias=bias),
        nn.BatchNorm2d(8),
        nn.GELU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=bias),
        Pixels(),
        nn.LayerNorm(8),
        nn.Linear(8, 10, bias=bias),
    )
    pixels = 6 * 9
    assert count_macs(model, 12, 18) == pixels * (8 * 3 * 25 + 8 * 9 + 8 * 10)


@pytest.mark.parametrize('heads', [1, 2])
def test_both_products_of_attention_count(heads: int) -> None:
    queries, keys, channels = 6 * 8, 24, 16
    assert count_macs(Attention(heads), 6, 8, in_channels=channels) == 2 * queries * keys * channels


def test_the_channels_of_the_image_may_be_chosen() -> None:
    assert count_macs(nn.Conv2d(5, 2, 1), 4, 4, in_channels=5) == 4 * 4 * 5 * 2


def test_counting_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[1].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    count_macs(model, 8, 8)
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_image_takes_the_precision_of_the_model() -> None:
    assert count_macs(nn.Conv2d(3, 2, 1).double(), 4, 4) == 4 * 4 * 3 * 2
