from __future__ import annotations

import itertools
import math

import pytest
import torch

from cvt_dense.models.window_layout import WindowLayout, key_map_size
from cvt_dense.models.windows import attend_in_windows
from cvt_dense.models.windows_exported import attend_in_padded_windows


@pytest.mark.parametrize('partial_keys', [True, False])
@pytest.mark.parametrize('num_prefix', [0, 1])
@pytest.mark.parametrize('kv_stride', [1, 2, 3])
@pytest.mark.parametrize('window_size', [1, 3, 4, 8, 30])
def test_padded_windows_are_windows(window_size: int, kv_stride: int, num_prefix: int, partial_keys: bool) -> None:
    for height, width in itertools.product([3, 4, 7, 12, 13, 23], [5, 16, 17]):
        num_keys = math.prod(key_map_size((height, width), kv_stride, partial_keys))
        query, key, value = (torch.randn(2, num_prefix + n, 8) for n in (height * width, num_keys, num_keys))
        settings = (2, 0.3, WindowLayout((height, width), kv_stride, window_size, num_prefix, partial_keys))
        torch.testing.assert_close(
            attend_in_padded_windows(query, key, value, *settings),
            attend_in_windows(query, key, value, *settings),
        )
