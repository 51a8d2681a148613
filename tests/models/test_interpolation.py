from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cvt_dense.models.interpolation import axis_weights


def weights(length: int, grid: int, cubic: bool) -> torch.Tensor:
    return axis_weights(torch.arange(length).double(), torch.full((length,), length).double(), grid, cubic)


@given(length=st.integers(1, 60), grid=st.integers(1, 20), cubic=st.booleans())
def test_it_is_what_torch_interpolates(length: int, grid: int, cubic: bool) -> None:
    x = torch.randn(1, 1, grid, 1, dtype=torch.double)
    mode = 'bicubic' if cubic else 'bilinear'
    expected = F.interpolate(x, size=(length, 1), mode=mode, align_corners=False).flatten()
    torch.testing.assert_close(weights(length, grid, cubic) @ x.flatten(), expected)


@pytest.mark.parametrize('cubic', [True, False])
@pytest.mark.parametrize('grid', [1, 2, 7, 56])
def test_an_axis_as_long_as_the_grid_has_its_values(grid: int, cubic: bool) -> None:
    assert torch.equal(weights(grid, grid, cubic), torch.eye(grid, dtype=torch.double))
