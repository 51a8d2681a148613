from __future__ import annotations

import pytest

from cvt_dense.models.cmt.arch import ARCHS, Arch, get_arch

TINY = dict(embed_dims=[16, 48], num_heads=[1, 3], depths=[1, 2], kv_stride=[4, 2])


def test_names_and_dicts_give_architectures() -> None:
    assert get_arch('cmt-s') is ARCHS['cmt-s']
    arch = get_arch(TINY)
    assert arch == Arch((16, 48), (1, 3), (1, 2), 4.0, [4, 2], 32, 224)
    assert get_arch(arch) is arch
    assert (arch.strides, arch.kv_strides) == ((4, 8), (4, 2))
    assert get_arch(TINY | dict(kv_stride=[[4], [2, 2]])).kv_strides == (4, 2)


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        ('cvt-13', r"unknown arch 'cvt-13'; choose one of cmt-ti, cmt-xs, cmt-s, cmt-b, or give a dict"),
        ({}, 'missing embed_dims, num_heads, depths'),
        (TINY | dict(stem=4), r'unknown stem \(it takes embed_dims, .*, kv_stride, stem_channels, pretrain_size\)'),
        (TINY | dict(kv_stride=[4, [2, 1]]), 'kv_stride must be the same in all blocks of a stage'),
        (TINY | dict(kv_stride=[8, 4, 2, 1]), 'kv_stride has 4 values for 2 stages'),
        (TINY | dict(stem_channels=0), 'stem_channels must be a positive integer, got 0'),
        (TINY | dict(pretrain_size=14), r'pretrain_size must be .* of at least 15 pixels, got 14'),
    ],
)
def test_wrong_settings_are_named(arch: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_arch(arch)


def test_grids_are_those_of_the_maps_of_pre_training() -> None:
    grids = {name: (arch.pretrain_grid, arch.key_grids[0][0]) for name, arch in ARCHS.items()}
    assert grids == {
        'cmt-ti': ((40, 20, 10, 5), 5),
        'cmt-xs': ((48, 24, 12, 6), 6),
        'cmt-s': ((56, 28, 14, 7), 7),
        'cmt-b': ((64, 32, 16, 8), 8),
    }
    assert all(set(arch.key_grids) == {(size, size)} for arch in ARCHS.values() for size, _ in [arch.key_grids[0]])
    assert get_arch(TINY | dict(pretrain_size=(63, 100))).query_grids == ((16, 25), (8, 12))
    assert get_arch(TINY | dict(pretrain_size=(63, 100))).key_grids == ((4, 6), (4, 6))
