"""A backbone says at its first step of training what it keeps random for ever, whatever trains it."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from families import Family, each_family
from golden import TINY
from mmengine.logging import MMLogger
from torch import nn

from cvt_dense import CvT
from cvt_dense.backbones.random_start import Kept, _say
from cvt_dense.models.norms import keeps_statistics

Said = Callable[[], list[str]]


@pytest.fixture
def said() -> Iterator[Said]:
    """The warnings in mmengine's log since the last look."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    _say.cache_clear()

    def look() -> list[str]:
        found = lines.copy()
        lines.clear()
        _say.cache_clear()
        return found

    yield look
    logger.removeHandler(handler)


def step(model: nn.Module) -> None:
    sum(x.mean() for x in model(torch.randn(2, 3, 32, 32))).backward()


@each_family
def test_it_is_said_at_the_first_step_of_training_alone(family: Family, said: Said) -> None:
    model = family.build()
    model.eval()(torch.randn(1, 3, 32, 32))
    assert said() == []
    model.train()
    step(model)
    assert said() == [
        f'{family.name} trains from random weights, and its BatchNorms keep mean 0 and variance 1 for ever '
        '(norm_eval=True), which normalises nothing: backbone=dict(norm_eval=False), or weights to start from'
    ]
    step(model)
    assert said() == []


@each_family
def test_frozen_stages_are_named(family: Family, said: Said) -> None:
    step(family.build(frozen_stages=0).train())
    (line,) = said()
    assert 'which normalises nothing, and its first stage keeps its random weights (frozen_stages=0)' in line
    assert 'backbone=dict(norm_eval=False, frozen_stages=-1)' in line
    step(family.build(frozen_stages=1, norm_eval=False).train())
    (line,) = said()
    assert line.endswith(
        'and its first 2 stages keep their random weights (frozen_stages=1): backbone=dict(frozen_stages=-1), '
        'or weights to start from'
    )


@each_family
def test_what_has_weights_or_learns_gets_no_word(family: Family, said: Said) -> None:
    learning = family.build(norm_eval=False).train()
    step(learning)  # and has statistics now
    for settings in (dict(), dict(frozen_stages=1)):
        model = family.build(**settings)
        model.load_state_dict(learning.state_dict())
        step(model.train())
    assert said() == []
    assert family.build(norm_eval=False).kept_from_random_start() is None


def test_a_cvt_without_batchnorm_gets_no_word(said: Said) -> None:
    linear = dict(embed_dims=[16, 32], num_heads=[1, 2], depths=[1, 1], projection='linear')
    model = CvT(linear, out_indices=(0, 1)).train()
    assert not any(keeps_statistics(module) for module in model.modules())
    step(model)
    assert said() == []
    assert model.kept_from_random_start() is None


@each_family
def test_norms_that_others_put_into_eval_mode_are_their_matter(family: Family, said: Said) -> None:
    model = family.build(norm_eval=False).train()
    for module in model.modules():
        if keeps_statistics(module):
            module.eval()
    step(model)
    assert said() == []


def test_copies_say_it_once(said: Said) -> None:
    model = CvT(TINY, out_indices=(0,)).train()
    for _ in range(3):  # as DataParallel does before each step
        step(copy.deepcopy(model))
    assert len(said()) == 1


@each_family
def test_nothing_is_looked_at_where_there_are_no_values(family: Family, said: Said) -> None:
    with torch.device('meta'):
        model = family.build().train()
        model(torch.randn(2, 3, 32, 32))
    assert isinstance(model.kept_from_random_start(), Kept)
    assert said() == []


@each_family
def test_graphs_are_as_they_were(family: Family, said: Said) -> None:
    """It is no part of what is compiled."""
    model = family.build().train()
    explained = torch._dynamo.explain(model)(torch.randn(2, 3, 32, 32))
    assert explained.graph_break_count == 0
    assert said() == []
    assert model.tells_of_random_start
