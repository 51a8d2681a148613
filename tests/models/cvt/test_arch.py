from __future__ import annotations

import pytest

from cvt_dense.models.cvt.arch import ARCHS, Arch, drop_path_rates, get_arch, per_block, window_sizes

TINY = dict(embed_dims=[16, 48], num_heads=[1, 3], depths=[1, 2])


def test_names_and_dicts_give_architectures() -> None:
    assert get_arch('cvt-21') is ARCHS['cvt-21']
    arch = get_arch(TINY)
    assert arch == Arch((16, 48), (1, 3), (1, 2), mlp_ratio=4.0, kv_stride=2)
    assert get_arch(arch) is arch
    assert arch.strides == (4, 8)


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('cvt-99', r"unknown arch 'cvt-99'; choose one of cvt-13, cvt-21, cvt-w24"),
        ({}, 'missing embed_dims, num_heads, depths'),
        (TINY | dict(mlp_ratios=4), 'unknown mlp_ratios'),
        (TINY | dict(depths=[1, 2, 3]), 'one value per stage'),
        (TINY | dict(depths=[1, 0]), 'depths must hold positive integers'),
        (TINY | dict(embed_dims=64), 'embed_dims must be a list'),
        (TINY | dict(num_heads=[1, 5]), 'divisible by num_heads, got 48 channels for 5 heads'),
        (TINY | dict(kv_stride=1.5), 'kv_stride must hold positive integers'),
        (TINY | dict(mlp_ratio=0), 'mlp_ratio must hold numbers'),
        (TINY | dict(mlp_ratio='4'), 'mlp_ratio must hold numbers'),
        (TINY | dict(mlp_ratio=[4, 0.01]), 'mlp_ratio must hold numbers'),
        (TINY | dict(kv_stride=True), 'kv_stride must hold positive integers'),
        (TINY | dict(mlp_ratio=[4, 4, 4]), 'mlp_ratio has 3 values for 2 stages'),
        (TINY | dict(kv_stride=[2, [1]]), 'kv_stride of stage 1 has 1 values for 2 blocks'),
    ],
)
def test_wrong_settings_are_named(arch: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_arch(arch)


def test_other_types_are_refused() -> None:
    with pytest.raises(TypeError, match='arch must be a name'):
        get_arch(13)


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
        ('pretrain', [[96], [48, 48]]),
        (['pretrain', None], [[96], [None, None]]),
        ([14, [7, None]], [[14], [7, None]]),
    ],
)
def test_windows_are_given_by_the_same_rule(value: object, sizes: list[list[int | None]]) -> None:
    assert window_sizes(value, get_arch(TINY)) == sizes


@pytest.mark.parametrize('value', [0, -1, 2.5, True, 'all', [7, [7, 'pre']], [7], [7, [7]]])
def test_wrong_windows_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match='window_size'):
        window_sizes(value, get_arch(TINY))
