from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mmengine.config import ConfigDict
from mmengine.model import PretrainedInit

from cvt_dense.backbones.weights import Initialization, Pretrained, read_init_cfg
from cvt_dense.errors import CheckpointError

CONV = dict(type='Kaiming', layer='Conv2d')


@pytest.mark.parametrize('kind', ['Pretrained', 'mmengine.Pretrained', PretrainedInit])
@pytest.mark.parametrize('wrap', [dict, ConfigDict, lambda entry: [entry], lambda entry: (ConfigDict(entry),)])
def test_a_pretrained_checkpoint_is_found_in_any_style(kind: Any, wrap: Any) -> None:
    init_cfg = wrap(dict(type=kind, checkpoint='a.pth', prefix='backbone.'))
    assert read_init_cfg(init_cfg) == Initialization([Pretrained('a.pth', 'backbone.')], [])


def test_other_initializers_are_left_to_mmengine_and_paths_are_strings() -> None:
    given = [CONV, dict(type='Pretrained', checkpoint=Path('a.pth')), dict(type='Pretrained', checkpoint='b.pth')]
    assert read_init_cfg(given) == Initialization([Pretrained('a.pth'), Pretrained('b.pth')], [CONV])
    assert read_init_cfg(CONV) == Initialization([], [CONV])


@pytest.mark.parametrize('init_cfg', [None, [], {}])
def test_nothing_asks_for_nothing(init_cfg: Any) -> None:
    assert read_init_cfg(init_cfg).pretrained == []


@pytest.mark.parametrize('kind', ['Pretrained', PretrainedInit])
@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(), 'names no checkpoint'),
        (dict(checkpoint=None), 'names no checkpoint'),
        (dict(checkpoint='a.pth', checkpont='b.pth'), "has an unknown key 'checkpont'"),
    ],
)
def test_what_loads_nothing_is_an_error(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_init_cfg(dict(type=kind, **settings))
