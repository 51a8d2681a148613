from __future__ import annotations

import torch

from cvt_dense.models.layout import Layout, pack, to_maps, token_counts, unpack


def test_parts_come_out_of_the_row_as_they_went_in() -> None:
    parts = [torch.randn(2, 6, 4), torch.randn(1, 3, 4), torch.randn(3, 1, 4)]
    row = pack(parts)
    assert row.shape == (1, 12 + 3 + 3, 4)
    for ours, part in zip(unpack(row, [2, 1, 3], [6, 3, 1]), parts, strict=True):
        assert torch.equal(ours, part)
        assert ours.untyped_storage().data_ptr() == row.untyped_storage().data_ptr()


def test_one_part_is_not_copied() -> None:
    part = torch.randn(2, 6, 4)
    assert pack([part]) is part
    assert unpack(part, [2], [6])[0] is part


def test_maps_are_the_tokens_behind_the_ones_in_front() -> None:
    layout = Layout([2, 1], [(2, 3), (1, 2)])
    parts = [torch.randn(2, 7, 4), torch.randn(1, 3, 4)]
    assert token_counts(layout, 1) == [7, 3]
    for ours, part, (height, width) in zip(to_maps(pack(parts), layout, 1), parts, layout.sizes, strict=True):
        assert torch.equal(ours, part[:, 1:].reshape(-1, height, width, 4).permute(0, 3, 1, 2))
