"""Loops, samplers and data loaders that do not go together: such a run would never end, or fail at its first epoch."""

from __future__ import annotations

from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import DataLoader

from ..errors import UserError

#: Samplers and batch samplers of mmdet without an end, by name: mmdet may not be installed.
_ENDLESS = ('MultiSourceSampler', 'GroupMultiSourceSampler')


def check_loader(loop: Any, split: str) -> None:
    """Check that a loop and the data loader that it goes through fit.

    Args:
        loop: A loop of mmengine, which is built.
        split: ``'train'``, ``'val'`` or ``'test'``, for the message.

    Raises:
        UserError: If the loop would wait for an end that the sampler does not have, or there is not one batch.
    """
    loader = getattr(loop, 'dataloader', None)
    if not isinstance(loader, DataLoader):
        return
    sampler = _endless_sampler(loader)
    if sampler and not isinstance(loop, IterBasedTrainLoop):
        raise UserError(
            f'{split}_dataloader: {sampler} has no end, and {type(loop).__name__} goes through it to the end; '
            f'--cfg-options {split}_dataloader.sampler.type=DefaultSampler'
            + (', or train by iterations (train_cfg.type=IterBasedTrainLoop)' if split == 'train' else '')
        )
    if not sampler and len(loader) == 0:
        images, batch = len(loader.dataset), loader.batch_sampler.batch_size
        raise UserError(
            f'{split}_dataloader: the {images} images that are read, shared out among the processes, are not one batch '
            f'of {batch}, and drop_last leaves out what is less; --cfg-options {split}_dataloader.drop_last=False, or '
            f'{split}_dataloader.batch_size={max(1, images // 2)}'
        )


def _endless_sampler(loader: DataLoader) -> str | None:
    """The name of a loader's sampler, if that has no end."""
    around = loader.batch_sampler
    # Resumable runs have their own batch sampler around the config's.
    for sampler in (loader.sampler, around, getattr(around, 'batches', None), getattr(around, 'sampler', None)):
        if isinstance(sampler, InfiniteSampler) or type(sampler).__name__ in _ENDLESS:
            return type(sampler).__name__
    return None
