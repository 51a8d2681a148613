from __future__ import annotations

import pytest

from cvt_dense.models.per_block import drop_path_rates, per_block, window_sizes


@pytest.mark.parametrize(
    ('value', 'spread'),
    [
        (2, [[2], [2, 2]]),
        ([1, 2], [[1], [2, 2]]),
        ([[1], [2, 1]], [[1], [2, 1]]),
        ((1, (2, 1)), [[1], [2, 1]]),
    ],
)
def test_settings_spread_over_blocks(value: object, spread: list[list[int]]) -> None:
    assert per_block(value, (1, 2), 'kv_stride') == spread


def test_a_scalar_drop_path_rate_rises_linearly_over_all_blocks() -> None:
    rates = drop_path_rates(0.3, (1, 2, 1))
    assert [len(stage) for stage in rates] == [1, 2, 1]
    assert [rate for stage in rates for rate in stage] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert drop_path_rates(0.3, (1,)) == [[0.0]]


def test_drop_path_rates_may_be_given_one_by_one() -> None:
    assert drop_path_rates([0.1, [0.2, 0.3]], (1, 2)) == [[0.1], [0.2, 0.3]]
    for rate in (1.0, -0.1, '0.1', None, [0.1, [0.2, '0.3']]):
        with pytest.raises(ValueError, match=r'drop_path_rate must lie in \[0, 1\)'):
            drop_path_rates(rate, (1, 2))


@pytest.mark.parametrize(
    ('value', 'sizes'),
    [
        (None, [[None], [None, None]]),
        (7, [[7], [7, 7]]),
        ('pretrain', [[56], [28, 28]]),
        (['pretrain', None], [[56], [None, None]]),
        ([14, [7, None]], [[14], [7, None]]),
    ],
)
def test_windows_are_given_by_the_same_rule(value: object, sizes: list[list[int | None]]) -> None:
    assert window_sizes(value, (1, 2), (56, 28)) == sizes


@pytest.mark.parametrize('value', [0, -1, 2.5, True, 'all', [7, [7, 'pre']], [7], [7, [7]]])
def test_wrong_windows_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match='window_size'):
        window_sizes(value, (1, 2), (56, 28))
