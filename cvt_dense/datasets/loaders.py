"""Whether loops end, and have something to do, with the batches that their loaders make."""

from __future__ import annotations

from typing import Any

from mmengine.config import Config
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop

from ..errors import UserError

#: Samplers that never end, and those derived from them: mmengine's, and mmdet's of several data sets.
ENDLESS = ('InfiniteSampler', 'MultiSourceSampler')


def check_loop(split: str, loop: Any, cfg: Config) -> None:
    """Check that a loop ends, and that its loader has a batch for it.

    Args:
        split: ``train``, ``val`` or ``test``.
        loop: Of a runner.
        cfg: The runner's config, for the options that the message names.

    Raises:
        UserError: If it would never end, or has no batch.
    """
    loader = getattr(loop, 'dataloader', None)
    batches = getattr(loader, 'batch_sampler', None)
    sampler = getattr(batches, 'sampler', None)
    if sampler is None:
        return
    key, name = f'{split}_dataloader', type(sampler).__name__
    if is_endless(sampler):
        if isinstance(loop, (EpochBasedTrainLoop, ValLoop, TestLoop)):
            clear = '' if name == 'InfiniteSampler' else f'{key}.sampler._delete_=True '
            raise UserError(
                f'{split} data: {type(loop).__name__.removeprefix("Resumable")} ends with its data, and the sampler '
                f'{name} never does',
                f'--cfg-options {clear}{key}.sampler.type=DefaultSampler',
            )
        return
    made = len(batches)
    if made == 1:  # mmdet's batches of like shapes may be fewer than they say
        inner = getattr(batches, 'batches', batches)
        made = sum(1 for _ in inner)
    if made or (split != 'train' and not len(sampler) and len(loader.dataset)):  # another process has the images
        return
    settings = cfg.get(key) or {}
    for where, part in (('batch_sampler.', settings.get('batch_sampler') or {}), ('', settings)):
        if len(sampler) and part.get('drop_last'):
            raise UserError(
                f'{split} data: {len(sampler)} images make no batch of {loader_batch_size(loader)}, and drop_last=True '
                f'leaves out what is not full',
                f'--cfg-options {key}.{where}drop_last=False, or a lower {key}.batch_size',
            )
    raise UserError(
        f'{split} data: the loader has no batch: {len(loader.dataset)} images, {len(sampler)} of {name}',
        f'--cfg-options {key}.sampler.type=DefaultSampler',
    )


def is_endless(sampler: Any) -> bool:
    """Whether a sampler goes on for ever."""
    return any(kind.__name__ in ENDLESS for kind in type(sampler).__mro__)


def loader_batch_size(loader: Any) -> Any:
    """How many samples are in a batch of a loader."""
    return getattr(loader.batch_sampler, 'batch_size', loader.batch_size)
