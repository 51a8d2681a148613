"""lightly's methods on features of whole images."""

from __future__ import annotations

import copy

import torch
from documents import run_block
from lightly.models.utils import deactivate_requires_grad, update_momentum
from tiny_timm import each_model


@each_model
def test_the_block_of_the_page_runs(name: str) -> None:
    width = 'head_hidden_size' if name == 'small_cmt' else 'num_features'
    names = run_block('integrations', 'lightly', {'cvt_13': name, 'num_features': width})
    names['loss'].backward()
    assert all(parameter.grad is not None for parameter in names['backbone'].parameters())


@each_model
def test_a_teacher_that_follows(name: str) -> None:
    student = run_block('integrations', 'lightly', {'cvt_13': name, 'num_features': 'head_hidden_size'})['backbone']
    teacher = copy.deepcopy(student)
    deactivate_requires_grad(teacher)
    for parameter in student.parameters():
        parameter.data += 1
    update_momentum(student, teacher, m=0.5)
    for ours, theirs in zip(student.parameters(), teacher.parameters()):
        torch.testing.assert_close(theirs, ours - 0.5)
    with torch.no_grad():
        assert teacher.eval()(torch.rand(1, 3, 65, 97)).isfinite().all()
