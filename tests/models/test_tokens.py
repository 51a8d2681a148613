from __future__ import annotations

import torch

from cvt_dense.models.tokens import map_to_tokens, tokens_to_map


def test_tokens_and_maps_are_views_of_each_other() -> None:
    tokens = torch.randn(2, 15, 4)
    x = tokens_to_map(tokens, (3, 5))
    assert x.shape == (2, 4, 3, 5)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert x.data_ptr() == tokens.data_ptr() == map_to_tokens(x).data_ptr()
    assert torch.equal(map_to_tokens(x), tokens)
