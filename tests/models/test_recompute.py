from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from cvt_dense.models.layout import Layout
from cvt_dense.models.recompute import recomputed

LAYOUT = Layout([3], [(2, 3)])


class Block(nn.Module):
    """A block whose only layer is a norm over the channels of ``(N, L, C)`` tokens."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.passes = 0

    def forward(self, tokens: torch.Tensor, layout: Layout) -> torch.Tensor:
        self.passes += 1
        return self.norm(tokens.transpose(1, 2)).transpose(1, 2)


NORMS = {
    'batch': lambda: nn.BatchNorm1d(4),
    'batch, cumulative': lambda: nn.BatchNorm1d(4, momentum=None),
    'batch, without statistics': lambda: nn.BatchNorm1d(4, track_running_stats=False),
    'instance': lambda: nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize('make', NORMS.values(), ids=NORMS)
@pytest.mark.parametrize('training', [True, False])
def test_a_recomputed_block_counts_its_batch_once(make: Callable[[], nn.Module], training: bool) -> None:
    plain, block = Block(make()).train(training), Block(make()).train(training)
    tokens = torch.randn(3, 6, 4)
    for step in range(2):
        plain(tokens + step, LAYOUT).square().mean().backward()
        recomputed(block, tokens + step, LAYOUT).square().mean().backward()
    assert (plain.passes, block.passes) == (2, 4)
    assert block.norm.momentum == plain.norm.momentum
    for ours, theirs in zip(block.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(block.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_without_gradients_nothing_is_kept_to_be_recomputed() -> None:
    block = Block(nn.BatchNorm1d(4))
    with torch.no_grad():
        recomputed(block, torch.randn(3, 6, 4), LAYOUT)
    assert block.passes == 1
    assert block.norm.num_batches_tracked == 1
