from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmdet.datasets.samplers import MultiSourceSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from torch.utils.data import BatchSampler, DataLoader

from cvt_dense.datasets.loaders import check_loader
from cvt_dense.engine.resume import ResumableBatchSampler
from cvt_dense.errors import UserError


class Numbers:
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> int:
        return index


def loop(kind: type, loader: DataLoader) -> Any:
    made = kind.__new__(kind)
    made.dataloader = loader
    return made


def plain(sampler: Any, batch_size: int = 2, drop_last: bool = False) -> DataLoader:
    return DataLoader(Numbers(), batch_size, sampler=sampler, drop_last=drop_last)


def resumable(sampler: Any, batch_size: int = 2, drop_last: bool = False) -> DataLoader:
    return DataLoader(Numbers(), batch_sampler=ResumableBatchSampler(sampler, batch_size, drop_last=drop_last))


def by_batches(sampler: Any, batch_size: int = 2, drop_last: bool = False) -> DataLoader:
    return DataLoader(Numbers(), batch_sampler=BatchSampler(sampler, batch_size, drop_last))


@pytest.mark.parametrize('load', [plain, resumable, by_batches])
@pytest.mark.parametrize(('kind', 'split'), [(EpochBasedTrainLoop, 'train'), (ValLoop, 'val'), (TestLoop, 'test')])
def test_a_loop_that_goes_to_the_end_needs_one(load: Any, kind: type, split: str) -> None:
    expected = f'{split}_dataloader: InfiniteSampler has no end, and {kind.__name__} goes through it to the end'
    with pytest.raises(UserError, match=f'{expected}; --cfg-options {split}_dataloader.sampler.type=DefaultSampler'):
        check_loader(loop(kind, load(InfiniteSampler(Numbers()))), split)
    check_loader(loop(kind, load(DefaultSampler(Numbers()))), split)


@pytest.mark.parametrize('load', [plain, resumable, by_batches])
def test_a_loop_over_iterations_needs_none(load: Any) -> None:
    check_loader(loop(IterBasedTrainLoop, load(InfiniteSampler(Numbers()))), 'train')
    check_loader(loop(IterBasedTrainLoop, load(InfiniteSampler(Numbers()), batch_size=8, drop_last=True)), 'train')


def test_endless_samplers_of_mmdet_are_known() -> None:
    sampler = MultiSourceSampler.__new__(MultiSourceSampler)
    with pytest.raises(UserError, match='MultiSourceSampler has no end'):
        check_loader(loop(EpochBasedTrainLoop, DataLoader(Numbers(), batch_sampler=sampler)), 'train')


@pytest.mark.parametrize('load', [plain, resumable, by_batches])
@pytest.mark.parametrize('kind', [EpochBasedTrainLoop, IterBasedTrainLoop])
def test_there_has_to_be_a_batch(load: Any, kind: type) -> None:
    with pytest.raises(UserError, match=r'the 5 images .+ are not one batch of 8, .+batch_size=2') as error:
        check_loader(loop(kind, load(DefaultSampler(Numbers()), batch_size=8, drop_last=True)), 'train')
    assert '\n' not in str(error.value)
    for batch_size, drop_last in ((8, False), (2, True)):  # either advice
        check_loader(loop(kind, load(DefaultSampler(Numbers()), batch_size, drop_last)), 'train')


def test_what_is_no_loader_is_left_alone() -> None:
    check_loader(SimpleNamespace(), 'train')
    check_loader(SimpleNamespace(dataloader=[1]), 'train')
