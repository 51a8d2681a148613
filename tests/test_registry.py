from __future__ import annotations

from typing import Any

import pytest
from mmengine.config import ConfigDict

from cvt_dense import CvT
from cvt_dense.registry import each_evaluator, type_name


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


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        (None, []),
        ([], []),
        (dict(type='IoUMetric'), ['IoUMetric']),
        ([dict(type='IoUMetric'), dict(type='CocoMetric')], ['IoUMetric', 'CocoMetric']),
        (ConfigDict(type='Evaluator', metrics=dict(type='CocoMetric')), ['CocoMetric']),
        (dict(metrics=[dict(type='CocoMetric')]), ['CocoMetric']),
    ],
)
def test_evaluators_are_found_however_a_config_has_them(settings: Any, expected: list[str]) -> None:
    assert [type_name(evaluator) for evaluator in each_evaluator(settings)] == expected
