from __future__ import annotations

import torch

from cvt_dense.checkpoints.compare import Mismatch, compare

EXPECTED = {
    'a': torch.zeros(2),
    'b': torch.zeros(2, 3),
    'bn.num_batches_tracked': torch.tensor(0),
    'c': torch.zeros(1),
}


def test_what_fits_has_no_mismatch() -> None:
    tensors = {**EXPECTED, 'surplus': torch.full((1,), torch.nan)}
    assert compare(tensors, EXPECTED) == Mismatch((), (), ())


def test_each_kind_of_mismatch_is_named_in_the_order_of_the_model() -> None:
    tensors = {'b': torch.zeros(3, 2), 'c': torch.tensor([torch.inf])}
    assert compare(tensors, EXPECTED) == Mismatch(missing=('a',), misshapen=('b',), infinite=('c',))
    assert compare({}, EXPECTED).missing == ('a', 'b', 'c')


def test_only_required_tensors_may_not_be_missing() -> None:
    assert compare({}, EXPECTED, required=['c', 'a']).missing == ('a', 'c')
    assert compare({'b': torch.zeros(1)}, EXPECTED, required=[]) == Mismatch((), ('b',), ())


def test_the_model_may_be_on_the_meta_device() -> None:
    expected = {name: tensor.to('meta') for name, tensor in EXPECTED.items()}
    assert compare(EXPECTED, expected) == Mismatch((), (), ())
