from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop
from robust import QUICK_SEGMENTATION, SEGMENTATION, LabelMaps, Run, run  # noqa: F401  the fixture
from torch.utils.data import DataLoader

from cvt_dense.datasets.loaders import check_loop, is_endless
from cvt_dense.errors import UserError


def loop_of(kind: type, sampler: type, images: int = 3, batch_size: int = 2, drop_last: bool = False) -> Any:
    data = list(range(images))
    loop = kind.__new__(kind)
    loop._dataloader = loop.dataloader = DataLoader(
        data, batch_size, sampler=sampler(data, seed=0), drop_last=drop_last
    )
    return loop


def told(split: str, loop: Any, **loader: Any) -> str:
    with pytest.raises(UserError) as error:
        check_loop(split, loop, Config({f'{split}_dataloader': loader}))
    return str(error.value)


LOOPS = [('train', EpochBasedTrainLoop), ('val', ValLoop), ('test', TestLoop)]


@pytest.mark.parametrize(('split', 'kind'), LOOPS)
def test_loops_over_data_need_samplers_that_end(split: str, kind: type) -> None:
    message = told(split, loop_of(kind, InfiniteSampler))
    assert message.endswith(f'--cfg-options {split}_dataloader.sampler.type=DefaultSampler')
    check_loop(split, loop_of(kind, DefaultSampler), Config())


def test_a_loop_over_iterations_takes_both() -> None:
    check_loop('train', loop_of(IterBasedTrainLoop, InfiniteSampler, images=1, batch_size=2, drop_last=True), Config())
    check_loop('train', loop_of(IterBasedTrainLoop, DefaultSampler), Config())


def test_those_of_mmdet_are_known_and_replaced_as_a_whole() -> None:
    samplers = pytest.importorskip('mmdet.datasets.samplers')
    for kind in (samplers.MultiSourceSampler, samplers.GroupMultiSourceSampler):
        sampler = kind.__new__(kind)
        assert is_endless(sampler)
        loop = loop_of(EpochBasedTrainLoop, DefaultSampler)
        loop._dataloader = SimpleNamespace(batch_sampler=SimpleNamespace(sampler=sampler))
        loop.dataloader = loop._dataloader
        message = told('train', loop)
        cfg = Config(dict(train_dataloader=dict(sampler=dict(type=kind.__name__, batch_size=5, source_ratio=[1, 4]))))
        cfg.merge_from_dict(dict(pair.split('=') for pair in message.partition('--cfg-options ')[2].split()))
        assert dict(cfg.train_dataloader.sampler) == dict(type='DefaultSampler')


@pytest.mark.parametrize(('split', 'kind'), [*LOOPS, ('train', IterBasedTrainLoop)])
def test_a_loader_without_a_batch_is_refused(split: str, kind: type) -> None:
    few = dict(images=1, batch_size=2, drop_last=True)
    message = told(split, loop_of(kind, DefaultSampler, **few), drop_last=True)
    assert '1 images make no batch of 2' in message
    assert f'--cfg-options {split}_dataloader.drop_last=False,' in message
    check_loop(split, loop_of(kind, DefaultSampler, **few | dict(drop_last=False)), Config())
    assert 'the loader has no batch' in told(split, loop_of(kind, DefaultSampler, images=0))


def test_batches_of_like_shapes_may_be_fewer_than_they_say() -> None:
    samplers = pytest.importorskip('mmdet.datasets.samplers')

    class Shapes(list):
        def get_data_info(self, index: int) -> dict[str, int]:
            return dict(width=self[index], height=2)

    data = Shapes([1, 3])
    batches = samplers.AspectRatioBatchSampler(DefaultSampler(data, seed=0), batch_size=2, drop_last=True)
    assert len(batches) == 1, 'as mmdet says'
    loop = loop_of(IterBasedTrainLoop, DefaultSampler)
    loop._dataloader = loop.dataloader = DataLoader(data, batch_sampler=batches)
    assert 'train_dataloader.batch_sampler.drop_last=False' in told('train', loop, batch_sampler=dict(drop_last=True))


def test_a_run_says_it_before_it_trains_and_goes_through_as_advised(run: Run, tmp_path: Any) -> None:  # noqa: F811
    LabelMaps(tmp_path / 'data')
    epochs = {'train_cfg._delete_': True, 'train_cfg.type': 'EpochBasedTrainLoop', 'train_cfg.max_epochs': 1}
    options = {key: value for key, value in QUICK_SEGMENTATION.items() if not key.startswith('train_cfg')} | epochs
    options |= {'train_dataloader.batch_size': 8, 'train_dataloader.drop_last': True}
    for _ in range(2):
        outcome = run('train', SEGMENTATION, **options)
        outcome.assert_fails('train data: ')
        advice = outcome.error.partition('--cfg-options ')[2].partition(',')[0]
        options |= dict(pair.split('=') for pair in advice.split())
    outcome = run('train', SEGMENTATION, **options)
    assert outcome.code == 0, outcome.error
