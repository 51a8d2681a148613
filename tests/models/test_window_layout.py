from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cvt_dense.models.window_layout import cut, key_map_size, places_in_windows

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


@given(length=SIDES, window_size=SIDES, kv_stride=st.integers(1, 4))
def test_the_last_window_has_what_is_left_over(length: int, window_size: int, kv_stride: int) -> None:
    assume(length >= kv_stride)
    runs = cut(length, window_size, kv_stride, partial_keys=False)
    assert len(runs) <= 3
    windows = [(queries, keys) for number, queries, keys in runs for _ in range(number)]
    assert sum(queries for queries, _ in windows) == length
    assert sum(keys for _, keys in windows) == length // kv_stride
    assert all(queries == keys * kv_stride for queries, keys in windows[:-1])
    assert windows[-1][0] == windows[-1][1] * kv_stride + length % kv_stride
    assert max(keys for _, keys in windows) - min(keys for _, keys in windows) <= 1
    assert (len(windows) - 1) * -(-window_size // kv_stride) < length // kv_stride


@given(length=SIDES, window_size=SIDES, kv_stride=st.integers(1, 4), partial_keys=st.booleans())
def test_each_token_has_a_place_in_its_window(
    length: int, window_size: int, kv_stride: int, partial_keys: bool
) -> None:
    assume(partial_keys or length >= kv_stride)
    places = places_in_windows(length, window_size, kv_stride, partial_keys, torch.device('cpu'))
    assert (len(places.queries), len(places.keys)) == (length, key_map_size((length, 9), kv_stride, partial_keys)[0])
    runs = cut(length, window_size, kv_stride, partial_keys)
    queries, keys = ([run[of] for run in runs for _ in range(run[0])] for of in (1, 2))
    assert places.queries.tolist() == [place for n in queries for place in range(n)]
    assert places.query_lengths.tolist() == [n for n in queries for _ in range(n)]
    assert places.keys.tolist() == [place for n in keys for place in range(n)]
    assert places.key_lengths.tolist() == [n for n in keys for _ in range(n)]
