"""What a pass of CMT costs, counted in operations and bytes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from costs import Costs
from golden import CMT_TINY

from cvt_dense.models.cmt import CMTTrunk
from cvt_dense.models.norms import keeps_statistics

BLOCKS = sum(CMT_TINY['depths'])
HIDDEN = 57  # channels of the MLP's hidden layer in stage 0: the largest tensor there has to be


def costs(side: int, training: bool = False, **settings: Any) -> Costs:
    """Those of a pass over one image, BatchNorm keeping its statistics as in detectors."""
    trunk = CMTTrunk(CMT_TINY | dict(pretrain_size=64), **settings).train(training)
    for module in trunk.modules():
        if keeps_statistics(module):
            module.eval()
    image = torch.randn(1, 3, side, side)
    with torch.set_grad_enabled(training), Costs() as counted:
        maps = trunk(image)
        if training:
            sum(x.mean() for x in maps).backward()
    return counted


@pytest.mark.parametrize('window_size', [None, 'pretrain'])
@pytest.mark.parametrize('training', [False, True])
def test_memory_grows_with_the_pixels_and_no_faster(training: bool, window_size: Any) -> None:
    """Queries x keys of the first stage would be 128² * 16² at 512 pixels, 4.5 times the largest tensor there is."""
    small, large = (costs(side, training, window_size=window_size) for side in (256, 512))
    assert large.largest == 4 * small.largest == (512 // 4) ** 2 * HIDDEN
    assert large.peak_bytes <= 1.01 * 4 * small.peak_bytes


def test_attention_is_fused_and_the_bias_is_made_once_per_stage() -> None:
    counted = costs(128)
    attentions = sum(n for name, n in counted.kernels.items() if 'attention' in name)
    assert attentions == BLOCKS
    assert counted.kernels['bmm'] == 2 * 4  # over the rows of the queries, and over their columns


def test_norms_on_kept_statistics_cost_a_pass_only_where_they_stand_behind_an_activation() -> None:
    norms = sum(n for name, n in costs(64).kernels.items() if 'batch_norm' in name)
    assert norms == 3 + BLOCKS  # of the stem, and before each depth-wise convolution
