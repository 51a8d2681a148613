from __future__ import annotations

import pytest

from cvt_dense import CvTTrunk
from cvt_dense.models.cvt.arch import ARCHS, Arch, get_arch

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


def test_the_grid_of_pre_training_is_that_of_384_pixels() -> None:
    assert [ARCHS[name].pretrain_grid for name in ARCHS] == [(96, 48, 24)] * 3
    assert get_arch(TINY).pretrain_grid == (96, 48)


@pytest.mark.parametrize(
    ('depths', 'last'),
    [([1, 1], [None]), ([1, 2], [24, None]), ([2, 10], [24] * 9 + [None])],
)
def test_fast_windows_leave_the_last_block_global(depths: list[int], last: list[object]) -> None:
    arch = dict(embed_dims=[16, 48, 48], num_heads=[1, 3, 3], depths=[1, *depths])
    trunk = CvTTrunk(arch, window_size='fast')
    windows = [[block.attn.window_size for block in stage.blocks] for stage in trunk.stages]
    assert windows == [[24], [24] * depths[0], last]
