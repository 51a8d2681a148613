"""Every argument of every constructor: what is of another kind is one line that names it."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from golden import CMT_TINY, TINY

from cvt_dense import CMT, CMTClassifier, CvT, CvTTrunk
from cvt_dense.backbones.timm import CvTClassifier
from cvt_dense.models.cmt import Arch as CMTArch
from cvt_dense.models.cmt import CMTTrunk
from cvt_dense.models.cvt.arch import Arch
from cvt_dense.models.settings import boolean, integer, is_integer, is_number, is_sequence, shown

ARRAY = np.ones((30, 30))
NOT_BOOLEAN = ['no', 'False', 1, 0, None, np.float32(1), []]
NOT_INTEGER = [True, False, 1.0, math.nan, '3', [3], None, {}]
NOT_POSITIVE = [*NOT_INTEGER, 0, -1]
NOT_PROBABILITY = [True, '0.1', None, {}, math.nan, math.inf, -0.1, 1.0, [0.1], [0.1] * 5, ARRAY, 1 + 1j]
NOT_WINDOWS = [True, '7', 'all', 0, -1, 2.5, math.nan, {}, [7], [7, 7, [7]], [7, 7, 'x'], ARRAY]
NOT_RESOLUTION = [*(value for value in NOT_INTEGER if value is not None), 0, 15, (64,), (64, 64, 64), (64, 15), ARRAY]
NOT_STAGES = [64, '64', None, {}, [], [64.0] * 4, [True] * 4, [0, 8, 8, 8], [8, 16], [8, 16, 8, '96'], ARRAY]
NOT_INIT_CFG = ['cvt-13-224x224-in1k', 3, True, {}, dict(checkpoint='x'), ['x'], [None]]

WRONG: dict[tuple[type, str], list[Any]] = {
    (CvT, 'arch'): ['cvt-99', {}, {1: 2}, TINY | {7: 8}],
    (CvT, 'in_channels'): NOT_POSITIVE,
    (CvT, 'out_indices'): [
        *(value for value in NOT_INTEGER if value != [3]),  # which is the map beyond the last stage
        [4],
        (),
        (1, 0),
        (0, 0),
        (0, 4),
        (-1,),
        (True,),
        (False, 1),
        (0.0,),
        '01',
        (0, [1]),
    ],
    (CvT, 'out_norm'): NOT_BOOLEAN,
    (CvT, 'drop_path_rate'): NOT_PROBABILITY,
    (CvT, 'window_size'): NOT_WINDOWS,
    (CvT, 'frozen_stages'): [*NOT_INTEGER, -2, 3],
    (CvT, 'norm_eval'): NOT_BOOLEAN,
    (CvT, 'with_cp'): NOT_BOOLEAN,
    (CvT, 'ignore_padding'): NOT_BOOLEAN,
    (CvT, 'reference_resolution'): NOT_RESOLUTION,
    (CvT, 'init_cfg'): NOT_INIT_CFG,
    (CvTTrunk, 'arch'): ['cvt-99', {}],
    (CvTTrunk, 'in_channels'): NOT_POSITIVE,
    (CvTTrunk, 'drop_path_rate'): NOT_PROBABILITY,
    (CvTTrunk, 'window_size'): NOT_WINDOWS,
    (CvTTrunk, 'reference_resolution'): NOT_RESOLUTION,
    (CvTTrunk, 'with_cp'): NOT_BOOLEAN,
    (CvTTrunk, 'num_stages'): [*(value for value in NOT_POSITIVE if value is not None), 4],
    (CvTClassifier, 'arch'): ['cvt-99', {}],
    (CvTClassifier, 'in_chans'): NOT_POSITIVE,
    (CvTClassifier, 'num_classes'): [*NOT_INTEGER, -1],
    (CvTClassifier, 'global_pool'): ['cls', None, True, []],
    (CvTClassifier, 'drop_rate'): [True, '0.1', None, math.nan, -0.1, 1.1],
    (CvTClassifier, 'drop_path_rate'): NOT_PROBABILITY,
    (CvTClassifier, 'window_size'): NOT_WINDOWS,
    (CvTClassifier, 'reference_resolution'): NOT_RESOLUTION,
    (CvTClassifier, 'dtype'): ['float16', torch.int8, True],
    (Arch, 'embed_dims'): [
        64,
        '64',
        None,
        {},
        [],
        [64.0, 64, 64],
        [True] * 3,
        [0, 3, 6],
        [64, 192],
        [16, 48, '96'],
        ARRAY,
    ],
    (Arch, 'num_heads'): [
        1,
        '136',
        None,
        [],
        [1.0, 3, 6],
        [True, 3, 6],
        [0, 3, 6],
        [1, 3],
        [1, 3, 7],
        [1, 3, math.nan],
    ],
    (Arch, 'depths'): [1, '122', None, [], [1.0, 2, 2], [True, 2, 2], [0, 2, 2], [1, 2], [1, 2, [2]], [1, 2, math.nan]],
    (Arch, 'mlp_ratio'): [True, '4', None, {}, math.nan, math.inf, 0, -4, [4, 4], [4, [4], 4], [4, 4, math.nan], ARRAY],
    (CMT, 'arch'): ['cmt-99', 'cvt-13', {}],
    (CMT, 'in_channels'): NOT_POSITIVE,
    (CMT, 'out_indices'): [
        *(value for value in NOT_INTEGER if value != [3]),
        [5],
        (),
        (1, 0),
        (0, 5),
        (-1,),
        (True,),
        (0.0,),
        '01',
    ],
    (CMT, 'out_norm'): NOT_BOOLEAN,
    (CMT, 'drop_path_rate'): NOT_PROBABILITY,
    (CMT, 'window_size'): NOT_WINDOWS,
    (CMT, 'frozen_stages'): [*NOT_INTEGER, -2, 4],
    (CMT, 'norm_eval'): NOT_BOOLEAN,
    (CMT, 'with_cp'): NOT_BOOLEAN,
    (CMT, 'ignore_padding'): NOT_BOOLEAN,
    (CMT, 'pretrain_size'): [*NOT_RESOLUTION, 30],
    (CMT, 'bias_interpolation'): ['nearest', None, True, 3, []],
    (CMT, 'init_cfg'): NOT_INIT_CFG,
    (CMTTrunk, 'arch'): ['cmt-99', 'cvt-13', {}],
    (CMTTrunk, 'in_channels'): NOT_POSITIVE,
    (CMTTrunk, 'drop_path_rate'): NOT_PROBABILITY,
    (CMTTrunk, 'window_size'): NOT_WINDOWS,
    (CMTTrunk, 'with_cp'): NOT_BOOLEAN,
    (CMTTrunk, 'num_stages'): [*(value for value in NOT_POSITIVE if value is not None), 5],
    (CMTTrunk, 'pretrain_size'): [*NOT_RESOLUTION, 30],
    (CMTTrunk, 'bias_interpolation'): ['nearest', None, True, 3, []],
    (CMTClassifier, 'arch'): ['cmt-99', {}],
    (CMTClassifier, 'in_chans'): NOT_POSITIVE,
    (CMTClassifier, 'num_classes'): [*NOT_INTEGER, -1],
    (CMTClassifier, 'global_pool'): ['cls', None, True, 'token', ''],
    (CMTClassifier, 'drop_rate'): [True, '0.1', None, math.nan, -0.1, 1.1],
    (CMTClassifier, 'drop_path_rate'): NOT_PROBABILITY,
    (CMTClassifier, 'window_size'): NOT_WINDOWS,
    (CMTClassifier, 'img_size'): [*NOT_RESOLUTION, 30],
    (CMTClassifier, 'bias_interpolation'): ['nearest', None, True, 3, []],
    (CMTClassifier, 'dtype'): ['float16', torch.int8, True],
    **{(CMTArch, name): NOT_STAGES for name in ('embed_dims', 'num_heads', 'depths')},
    (CMTArch, 'mlp_ratio'): [True, '4', None, {}, math.nan, 0, [4, 4], [4, [4], 4, 4], ARRAY],
    (CMTArch, 'kv_stride'): [True, '2', None, {}, math.nan, 2.0, 0, -2, [2, 2], [8, [4, 2], 2, 1], ARRAY],
    (CMTArch, 'stem_channels'): NOT_POSITIVE,
    (CMTArch, 'pretrain_size'): [*NOT_RESOLUTION, None, 30],
    **{
        (Arch, name): [True, 1, None, {}, 'x', '', ['conv'], [None] * 3, ['x'] * 3, [['conv', 'conv']] * 3, ARRAY]
        for name in ('projection', 'patch_embed', 'position')
    },
    (Arch, 'stem_channels'): [value for value in NOT_POSITIVE if value is not None],
    (Arch, 'pretrain_size'): [*NOT_RESOLUTION, None],
    (Arch, 'kv_stride'): [True, '2', None, {}, math.nan, 2.0, 0, -2, [2, 2], [2, [2], 2], [2, 2, 0.5], ARRAY],
}
#: Whatever torch takes.
NOT_OURS = {(CvTClassifier, 'device'), (CMTClassifier, 'device')}


def build(kind: type, **settings: Any) -> Any:
    tiny = CMT_TINY if kind in (CMT, CMTTrunk, CMTClassifier, CMTArch) else TINY
    return kind(**((tiny if kind in (Arch, CMTArch) else dict(arch=tiny)) | settings))


@pytest.mark.parametrize(('kind', 'name'), WRONG, ids=lambda value: getattr(value, '__name__', value))
def test_wrong_settings_are_one_line_that_names_them(kind: type, name: str) -> None:
    for value in WRONG[kind, name]:
        expected = AssertionError if name == 'global_pool' else ValueError
        with pytest.raises(expected) as error:
            build(kind, **{name: value})
        message = str(error.value)
        assert name in message, (value, message)
        assert '\n' not in message
        assert len(message) < 300


def test_the_table_has_every_argument() -> None:
    kinds = (CvT, CvTTrunk, CvTClassifier, Arch, CMT, CMTTrunk, CMTClassifier, CMTArch)
    arguments = {(kind, name) for kind in kinds for name in inspect.signature(kind).parameters}
    assert arguments == WRONG.keys() | NOT_OURS


def test_numbers_of_numpy_are_taken_for_what_they_are() -> None:
    three = np.int64(3)
    model = CvT(
        TINY | dict(depths=[np.int32(1), 1, 1], mlp_ratio=np.float32(2)),
        in_channels=three,
        out_indices=(np.int64(1),),
        frozen_stages=np.int64(0),
        drop_path_rate=np.float32(0.25),
        window_size=[None, np.int64(7), None],
    )
    settings = [model.in_channels, model.frozen_stages, *model.out_indices, model.stage1.blocks[0].attn.window_size]
    assert settings == [3, 0, 1, 7]
    assert all(type(value) is int for value in settings)
    assert CvTTrunk(TINY, num_stages=np.int64(2)).num_stages == 2


def test_kinds_of_settings() -> None:
    assert is_integer(3)
    assert is_integer(np.int64(3))
    assert not any(map(is_integer, (True, 3.0, '3', None, np.bool_(True))))
    assert is_number(0.5)
    assert is_number(np.float32(0.5))
    assert not any(map(is_number, (True, math.nan, math.inf, '0.5', 1j, None)))
    assert is_sequence([1])
    assert not any(map(is_sequence, ('ab', b'ab', {1: 2}, {1}, ARRAY)))
    assert integer(0, 'x', least=0) == 0
    with pytest.raises(ValueError, match='x must be an integer of at least 0, got -1'):
        integer(-1, 'x', least=0)
    assert boolean(False, 'x') is False
    with pytest.raises(ValueError, match="x must be True or False, got 'False'"):
        boolean('False', 'x')
    assert shown('a') == "'a'"
    assert '\n' not in shown(ARRAY)
    assert len(shown(ARRAY)) == 81
