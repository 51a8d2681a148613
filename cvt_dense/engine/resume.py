"""Runs that end the same whether they were interrupted or not.

mmengine resumes weights, optimizer and schedule; not the random numbers, nor the place within an epoch. Here every
random draw is a function of the run's seed and of where it is drawn (process, epoch, batch, sample), so there is no
state to lose: a resumed run skips the batches that were trained on and goes on as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, DATASETS, HOOKS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Sampler

from ..registry import type_name
from .config import add_hook, hooks_of
from .randomness import SeededIndex, derived_seed, seed_everything

_LOOPS = {
    'EpochBasedTrainLoop': 'ResumableEpochBasedTrainLoop',
    'IterBasedTrainLoop': 'ResumableIterBasedTrainLoop',
}


def make_resumable(cfg: Config) -> bool:
    """Change a config so that its run can be resumed exactly; returns False for a train loop of another kind.

    Checkpoints are kept until the next one is whole, whatever the loop.
    """
    checkpoint = hooks_of(cfg).setdefault('checkpoint', ConfigDict(type='CheckpointHook', interval=1))
    if checkpoint and type_name(checkpoint) == 'CheckpointHook':
        checkpoint.type = 'KeepUntilSavedCheckpointHook'
    loop = type_name(cfg.train_cfg, 'EpochBasedTrainLoop' if cfg.train_cfg.get('by_epoch') else '')
    loader = cfg.train_dataloader
    if loop not in (*_LOOPS, *_LOOPS.values()) or not isinstance(
        loader.get('batch_sampler', {}), (Mapping, type(None))
    ):
        return False
    cfg.train_cfg.pop('by_epoch', None)
    cfg.train_cfg.type = _LOOPS.get(loop, loop)
    if type_name(loader.dataset) != 'SeededDataset':  # a dumped config has all this
        loader.dataset = ConfigDict(type='SeededDataset', dataset=loader.dataset)
    if type_name(loader.get('batch_sampler')) != 'ResumableBatchSampler':
        loader.batch_sampler = ConfigDict(
            type='ResumableBatchSampler',
            batch_sampler=loader.get('batch_sampler'),
            drop_last=loader.pop('drop_last', False),
        )
    for hook in ('SeedIterationsHook', 'ValidateResumedHook', 'ResumeNotesHook'):
        add_hook(cfg, hook)
    return True


@DATASETS.register_module()
class SeededDataset:
    """Any dataset, its random augmentations determined by the :class:`SeededIndex` that a sample is asked for by."""

    def __init__(self, dataset: Mapping[str, Any]) -> None:
        self.dataset = DATASETS.build(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: SeededIndex) -> Any:
        seed_everything(position.seed)
        return self.dataset[position.index]

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset':  # not there yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set it on the dataset, whose pipeline hooks replace late in training (mmdet's ``PipelineSwitchHook``)."""
        if name == 'dataset':
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(Sampler):
    """Batches of :class:`SeededIndex`, from any one on; none before :meth:`start_at` has said from which.

    Upstream mmengine starts workers, and the sampler, as it builds its loop over iterations, before that knows where to
    start. Its InfiniteSampler cannot be started twice: it would have nothing left.

    Args:
        sampler: Of indices.
        batch_size: Samples in a batch.
        batch_sampler: Config of what makes batches of the sampler's indices; in order by default.
        drop_last: Leave out a last batch that is not full; for batches in order only.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batch_sampler: Mapping[str, Any] | None = None,
        drop_last: bool = False,
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        if batch_sampler is None:
            self.batches: Any = BatchSampler(sampler, batch_size, drop_last)
        else:
            settings = dict(sampler=sampler, batch_size=batch_size) | (dict(drop_last=True) if drop_last else {})
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=settings)
        self._start: tuple[int, int, int] | None = None

    def start_at(self, seed: int, epoch: int, batch: int) -> None:
        """Let the next iteration begin at a batch of an epoch."""
        self._start = seed, epoch, batch
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        if self._start is None:
            return
        seed, epoch, first = self._start
        for number, batch in enumerate(self.batches):
            if number >= first:
                place = (seed, get_rank(), epoch, number)
                yield [SeededIndex(index, derived_seed(*place, k)) for k, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        if name == 'batches':  # not there yet, while being unpickled
            raise AttributeError(name)
        return getattr(self.batches, name)


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(EpochBasedTrainLoop):
    """mmengine's loop over epochs, which begins a resumed epoch where it was left."""

    def run_epoch(self) -> None:
        """Iterate what is left of an epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        done = self._iter - self._epoch * len(self.dataloader)
        if not 0 <= done <= len(self.dataloader):  # the number of batches in an epoch has changed since
            done = 0
        self.dataloader.batch_sampler.start_at(self.runner.seed, self._epoch, done)
        for index, batch in enumerate(self.dataloader, start=done):
            self.run_iter(index, batch)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(IterBasedTrainLoop):
    """mmengine's loop over iterations, which goes on without loading the batches that were trained on."""

    def run(self) -> None:
        """Train to the last iteration."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        self.dataloader_iterator = None  # upstream's, whose workers have nothing to do
        batches = self._batches()
        while self._iter < self._max_iters and not self.stop_training:
            self.runner.model.train()
            self.run_iter(next(batches))
            self._decide_current_val_interval()
            last = self._iter == self._max_iters
            if self.runner.val_loop and self._iter >= self.val_begin and (last or self._iter % self.val_interval == 0):
                self.runner.val_loop.run()
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def _batches(self) -> Iterator[Sequence[Any]]:
        sampler = self.dataloader.batch_sampler
        endless = isinstance(sampler.sampler, InfiniteSampler)
        epoch, done = (0, self._iter) if endless else divmod(self._iter, len(self.dataloader))
        while True:
            sampler.start_at(self.runner.seed, epoch, done)
            yield from self.dataloader
            epoch, done = epoch + 1, 0


@HOOKS.register_module()
class SeedIterationsHook(Hook):
    """Determines what a training iteration draws at random: drop path, dropout, samples of proposals."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed all generators by the run's seed, the process and the iteration."""
        seed_everything(derived_seed(runner.seed, get_rank(), runner.iter))


@HOOKS.register_module()
class ValidateResumedHook(Hook):
    """Does the validation that a run was ended before or in, when it is resumed: mmengine would leave it out."""

    priority = 'LOWEST'  # when all other hooks are ready

    def before_train(self, runner: Runner) -> None:
        """Validate if that is due at the iteration that was resumed from, and not known to be done."""
        loop, done = runner.train_loop, runner.message_hub.runtime_info.get('iter_validated')
        if runner.val_loop is None or loop.iter in (0, done):
            return
        loop._decide_current_val_interval()
        if isinstance(loop, EpochBasedTrainLoop):
            at_an_end = loop.iter == loop.epoch * len(loop.dataloader)
            step, last = loop.epoch, loop.max_epochs
        else:
            at_an_end, step, last = True, loop.iter, loop.max_iters
        if at_an_end and step >= loop.val_begin and (step == last or step % loop.val_interval == 0):
            runner.val_loop.run()

    def after_val(self, runner: Runner) -> None:
        """Note it for the next checkpoint."""
        runner.message_hub.update_info('iter_validated', runner.iter)
