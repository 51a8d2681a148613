from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cvt_dense.models.window_layout import cut

SIDES = st.integers(1, 70)


@given(length=SIDES, window_size=SIDES, kv_stride=st.integers(1, 4))
def test_windows_cover_an_axis_evenly_and_cut_no_key_in_two(length: int, window_size: int, kv_stride: int) -> None:
    runs = cut(length, window_size, kv_stride)
    assert len(runs) <= 3
    windows = [(queries, keys) for number, queries, keys in runs for _ in range(number)]
    assert sum(queries for queries, _ in windows) == length
    assert sum(keys for _, keys in windows) == -(-length // kv_stride)
    assert all(queries == keys * kv_stride for queries, keys in windows[:-1])
    assert all(0 < queries <= -(-window_size // kv_stride) * kv_stride for queries, _ in windows)
    assert max(keys for _, keys in windows) - min(keys for _, keys in windows) <= 1
    # As few as possible: one less could not cover the keys.
    assert (len(windows) - 1) * -(-window_size // kv_stride) < -(-length // kv_stride)
