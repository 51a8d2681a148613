from __future__ import annotations

import torch

from cvt_dense.models.embed import ConvEmbed


def test_embedding_sub_samples_and_says_to_what() -> None:
    tokens, size = ConvEmbed(3, 8, kernel_size=7, stride=4, padding=2)(torch.randn(2, 3, 33, 47))
    assert size == (8, 12)
    assert tokens.shape == (2, 96, 8)
