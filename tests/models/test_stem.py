"""The stem in front of the first stage."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from cvt_dense.models.canvas import convolved_size
from cvt_dense.models.embed import ConvEmbed
from cvt_dense.models.stem import Stem, sampling_convolutions


@pytest.mark.parametrize('size', [(8, 12), (7, 5), (1, 1)])
@pytest.mark.parametrize('training', [True, False])
def test_it_is_three_convolutions_each_with_gelu_and_then_a_norm(size: tuple[int, int], training: bool) -> None:
    stem = Stem(3, 4).double().train(training)
    x = torch.randn(2, 3, *size, dtype=torch.double)
    (ours,) = stem([x])
    for conv, norm in [(stem.conv1, stem.norm1), (stem.conv2, stem.norm2), (stem.conv3, stem.norm3)]:
        x = norm(F.gelu(conv(x)))
    torch.testing.assert_close(ours, x)
    assert ours.shape[2:] == ((size[0] + 1) // 2, (size[1] + 1) // 2)


@pytest.mark.parametrize('size', [(64, 48), (37, 53)])
def test_the_sampling_convolutions_tell_a_stages_size(size: tuple[int, int]) -> None:
    stem, embed = Stem(3, 4), ConvEmbed(4, 8, kernel_size=3, stride=2, padding=1)
    (x,) = stem([torch.randn(1, 3, *size)])
    _, embedded = embed(x)
    for conv in sampling_convolutions(stem, embed):
        size = convolved_size(size, conv)
    assert size == embedded
    assert sampling_convolutions(None, embed) == [embed.proj]
