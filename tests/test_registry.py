from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import ConfigDict

from cvt_dense import CvT
from cvt_dense.registry import type_name


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (dict(type='CvT'), 'CvT'),
        (dict(type='mmdet.CocoDataset'), 'CocoDataset'),
        (dict(type=CvT), 'CvT'),
        (ConfigDict(type='CvT', arch='cvt-13'), 'CvT'),
        (ConfigDict(type=CvT), 'CvT'),
        (dict(arch='cvt-13'), 'default'),
        (dict(type=None), 'default'),
        ({}, 'default'),
        (None, 'default'),
    ],
)
def test_a_type_is_named_whether_it_is_a_string_or_a_class(settings: Any, expected: str) -> None:
    assert type_name(settings, 'default') == expected
