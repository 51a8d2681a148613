from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, DefaultSampler, InfiniteSampler
from mmengine.fileio import get_file_backend
from mmengine.registry import DATASETS, TRANSFORMS
from mmengine.runner import Runner
from small_regression import AddNoise, Numbers, Regressor, config

from cvt_dense.checkpoints.unpickling import mmengine_types
from cvt_dense.engine.checkpoint_files import AtomicLocalBackend
from cvt_dense.engine.randomness import SeededIndex, derived_seed, seed_everything
from cvt_dense.engine.resume import ResumableBatchSampler, SeededDataset, make_resumable


class Interrupted(Exception):
    """Stands for a machine that dies."""


def train(cfg: Config, resume_from: Path | None = None, die_at: int | None = None) -> tuple[dict, list[list[float]]]:
    """Weights at the end, and the samples that were trained on."""
    assert make_resumable(cfg)
    cfg.update(resume=resume_from is not None, load_from=resume_from and str(resume_from))
    Regressor.seen = []
    runner = Runner.from_cfg(cfg)
    if die_at is not None:
        loop, run_iter = runner.train_loop, runner.train_loop.run_iter

        def die_or_run(*args: Any) -> None:
            if loop.iter == die_at:
                raise Interrupted
            run_iter(*args)

        loop.run_iter = die_or_run
    with mmengine_types():  # as the tools read checkpoints; upstream's mmengine cannot on its own
        runner.train()
    return runner.model.state_dict(), Regressor.seen


@TRANSFORMS.register_module()
class Negative:
    """What a later pipeline does."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        return dict(inputs=-AddNoise()(results)['inputs'])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_hook_that_switches_the_pipeline_switches_it(tmp_path: Path, workers: int) -> None:
    """mmdet's for RTMDet, which sets it on the data set; data loaders' workers live on between epochs."""
    cfg = config(tmp_path, by_epoch=True, workers=workers)
    cfg.custom_hooks = [dict(type='mmdet.PipelineSwitchHook', switch_epoch=1, switch_pipeline=[dict(type='Negative')])]
    _, seen = train(cfg)
    first, later = seen[:6], seen[6:]
    assert min(min(batch) for batch in first) == 0
    assert max(max(batch) for batch in later) == 0
    assert min(min(batch) for batch in later) == -16


def test_hooks_of_the_toolkits_set_nothing_else_on_data_sets_and_samplers() -> None:
    """What they set or call there has to reach through ours; a new one is looked at, and this list is extended."""
    packages = ('mmengine.hooks', 'mmdet.engine.hooks', 'mmseg.engine.hooks')
    folders = [Path(find_spec(name).origin).parent for name in packages]
    text = '\n'.join(path.read_text() for folder in folders for path in sorted(folder.glob('*.py')))
    setting = set(re.findall(r'(?:loader|dataset|sampler)\.(\w+) = ', text))
    calling = set(re.findall(r'(?:loader|dataset|sampler)\.([a-z]\w+)\(', text))
    assert setting - {'_iterator', '_DataLoader__initialized'} == {'pipeline'}
    assert calling == {'set_epoch', 'update_skip_type_keys'}


def test_what_is_asked_of_and_set_on_a_wrapped_data_set_reaches_it(tmp_path: Path) -> None:
    @DATASETS.register_module(force=True)
    class Mixed(Numbers):
        def update_skip_type_keys(self, keys: list[str]) -> None:
            self.skipped = keys

    dataset = SeededDataset(dict(type='Mixed', pipeline=[dict(type='AddNoise')]))
    dataset.update_skip_type_keys(['Mosaic'])
    dataset.pipeline = Compose([Negative()])
    assert dataset.dataset.skipped == dataset.skipped == ['Mosaic']
    assert dataset[SeededIndex(3, 0)]['inputs'][0] == -3
    copied = pickle.loads(pickle.dumps(SeededDataset(dict(type='Numbers', pipeline=[]))))
    assert len(copied) == 17
    sampler = ResumableBatchSampler(InfiniteSampler(copied), 4, drop_last=True)
    assert sampler.drop_last is True


@pytest.mark.parametrize(
    ('by_epoch', 'settings', 'die_at', 'workers'),
    [
        (True, {}, 2, 0),
        (True, {}, 6, 0),
        (True, {}, 10, 1),
        (True, dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')), 6, 0),
        (True, dict(batch_sampler=dict(type='mmdet.AspectRatioBatchSampler')), 10, 1),
        (False, {}, 6, 0),
        (False, {}, 10, 0),
        (False, dict(sampler='InfiniteSampler'), 10, 1),
        (False, dict(drop_last=True), 6, 0),
    ],
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, by_epoch: bool, settings: dict[str, Any], die_at: int, workers: int
) -> None:
    """6 batches an epoch: interrupted in the first epoch, at its end and in the second one."""
    if 'batch_sampler' in settings:
        pytest.importorskip('mmdet.datasets')  # fills the registry

    expected, samples = train(config(tmp_path / 'whole', by_epoch, workers, **settings))
    with pytest.raises(Interrupted):
        train(config(tmp_path / 'cut', by_epoch, workers, **settings), die_at=die_at)
    seed_everything(99)  # a new process would have other random numbers
    checkpoint = tmp_path / 'cut' / f'iter_{die_at}.pth'
    weights, rest = train(config(tmp_path / 'cut', by_epoch, workers, **settings), resume_from=checkpoint)
    assert rest == samples[die_at:]
    assert len(samples) == (18 if by_epoch else 15)
    for name, tensor in expected.items():
        assert torch.equal(weights[name], tensor), name


def test_every_epoch_and_every_sample_draws_anew(tmp_path: Path) -> None:
    cfg = config(tmp_path, True, 0)
    make_resumable(cfg)
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=3)
    drawn = []
    for epoch in range(2):
        loader.batch_sampler.start_at(3, epoch, 0)
        drawn += [tuple(x[1:].tolist()) for batch in loader for x in batch['inputs']]
    assert len(drawn) == 34
    assert len(set(drawn)) == 34


def batches(sampler: ResumableBatchSampler) -> list[list[int]]:
    return [[position.index for position in batch] for batch in sampler]


@pytest.mark.parametrize('drop_last', [False, True])
def test_batches_are_those_of_the_sampler_from_any_one_on(drop_last: bool) -> None:
    inner = DefaultSampler(range(17), shuffle=False)
    sampler = ResumableBatchSampler(inner, 5, drop_last=drop_last)
    whole = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], *([] if drop_last else [[15, 16]])]
    assert len(sampler) == len(whole)
    for first in range(len(whole) + 1):
        sampler.start_at(seed=1, epoch=0, batch=first)
        assert batches(sampler) == whole[first:]


def test_there_are_no_batches_before_it_is_said_where_to_start() -> None:
    """Upstream mmengine asks for them too early, and its endless sampler can be asked only once."""
    sampler = ResumableBatchSampler(InfiniteSampler(range(7), seed=5), 3)
    assert list(sampler) == []
    sampler.start_at(5, 0, 2)
    assert len(next(iter(sampler))) == 3


def test_an_endless_sampler_goes_on_where_it_was() -> None:
    def first_batches(start: int, count: int) -> list[list[int]]:
        sampler = ResumableBatchSampler(InfiniteSampler(range(7), seed=5), 3)
        sampler.start_at(5, 0, start)
        stream: Iterator[list[SeededIndex]] = iter(sampler)
        return [[p.index for p in next(stream)] for _ in range(count)]

    assert first_batches(4, 3) == first_batches(0, 7)[4:]


def test_seeds_differ_between_runs_processes_epochs_batches_and_samples() -> None:
    places = [(s, r, e, b, k) for s in range(3) for r in range(3) for e in range(3) for b in range(3) for k in range(3)]
    assert len({derived_seed(*place) for place in places}) == len(places)
    assert derived_seed(1, 2) == derived_seed(1, 2)


def test_a_dataset_that_is_wrapped_still_answers_for_itself(tmp_path: Path) -> None:
    cfg = config(tmp_path, True, 0)
    make_resumable(cfg)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    for copy in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert len(copy) == 17
        assert copy.get_data_info(3)['value'] == 3.0
        with pytest.raises(AttributeError):
            _ = copy.nothing_of_the_kind
    assert torch.equal(dataset[SeededIndex(2, 7)]['inputs'], dataset[SeededIndex(2, 7)]['inputs'])


@pytest.mark.parametrize(
    'train_cfg', [dict(type='OwnLoop', max_epochs=3), dict(by_epoch=False, max_iters=3), dict(max_epochs=3)]
)
def test_other_train_loops_are_left_as_they_are(tmp_path: Path, train_cfg: dict[str, Any]) -> None:
    cfg = config(tmp_path, True, 0)
    cfg.train_cfg = train_cfg
    assert not make_resumable(cfg)
    assert cfg.train_cfg == train_cfg
    assert cfg.train_dataloader.dataset.type == 'Numbers'
    assert cfg.default_hooks.checkpoint.type == 'KeepUntilSavedCheckpointHook'


def test_making_a_config_resumable_twice_is_once(tmp_path: Path) -> None:
    cfg = config(tmp_path, True, 0)
    assert make_resumable(cfg)
    once = cfg.to_dict()
    assert make_resumable(cfg)
    assert cfg.to_dict() == once


def test_the_last_checkpoint_is_there_until_the_next_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = config(tmp_path, True, 0)
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    there: list[list[str]] = []
    save = Runner.save_checkpoint

    def look_and_save(self: Runner, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        there.append(sorted(path.name for path in tmp_path.glob('*.pth')))
        save(self, out_dir, filename, *args, **kwargs)

    monkeypatch.setattr(Runner, 'save_checkpoint', look_and_save)
    train(cfg)
    assert there == [[], *[[f'iter_{i}.pth'] for i in range(1, 18)]]
    assert [path.name for path in tmp_path.glob('*.pth')] == ['iter_18.pth']


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend, target = AtomicLocalBackend(), tmp_path / 'new folder' / 'a.pth'
    backend.put(b'old', target)
    backend.put_text('größer', tmp_path / 'note')
    assert (tmp_path / 'note').read_text(encoding='utf-8') == 'größer'

    def full(fd: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('os.fsync', full)
    with pytest.raises(OSError, match='No space left'):
        backend.put(b'new', target)
    assert target.read_bytes() == b'old'
    assert [path.name for path in target.parent.iterdir()] == ['a.pth']


def test_mmengine_writes_through_it_once_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmengine.fileio.backends import registry_utils

    from cvt_dense.engine.checkpoint_files import write_files_atomically

    for table, key in ((registry_utils.backends, 'local'), (registry_utils.prefix_to_backends, '')):
        monkeypatch.setitem(table, key, table[key])  # as it is, and so again afterwards
    write_files_atomically()
    assert isinstance(get_file_backend('a.pth'), AtomicLocalBackend)
