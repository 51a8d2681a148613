from __future__ import annotations

import torch
from costs import Costs

from cvt_dense.models.attention import attend


def test_attention_is_softmax_of_the_scaled_products_head_by_head() -> None:
    query, key, value = torch.randn(2, 7, 12), torch.randn(2, 5, 12), torch.randn(2, 5, 12)
    expected = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (0.3 * query[..., part] @ key[..., part].transpose(1, 2)).softmax(-1)
        expected.append(weights @ value[..., part])
    torch.testing.assert_close(attend(query, key, value, 3, 0.3), torch.cat(expected, -1))


def test_no_tensor_grows_with_queries_times_keys_forward_or_backward() -> None:
    query = torch.randn(1, 4096, 32, requires_grad=True)
    key, value = (torch.randn(1, 1024, 32, requires_grad=True) for _ in range(2))
    with Costs() as costs:
        attend(query, key, value, 1, 0.2).sum().backward()
    assert 0 < costs.largest <= query.numel() < 4096 * 1024
