from __future__ import annotations

import pytest
from torch import nn

from cvt_dense.models.norms import keeps_statistics


@pytest.mark.parametrize('norm', [nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.SyncBatchNorm(4)])
def test_any_batch_norm_keeps_statistics(norm: nn.Module) -> None:
    assert keeps_statistics(norm)


@pytest.mark.parametrize(
    'module',
    [
        nn.LayerNorm(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4, track_running_stats=False),
        nn.Sequential(nn.BatchNorm2d(4)),
    ],
)
def test_other_modules_do_not(module: nn.Module) -> None:
    assert not keeps_statistics(module)
