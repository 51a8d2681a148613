"""The rule by which a setting is given: a scalar, one value per stage, or one per block."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

from .settings import is_integer, is_number, is_sequence, shown

Number: TypeAlias = int | float
#: A scalar, one value per stage, or one sequence of values per stage (one value per block).
PerBlock: TypeAlias = Number | Sequence[Number | Sequence[Number]]
Window: TypeAlias = int | str | None
#: Attention windows, by the same rule.
WindowSize: TypeAlias = Window | Sequence[Window | Sequence[Window]]


def per_block(value: Any, depths: Sequence[int], name: str) -> list[list[Any]]:
    """Spread a setting over all blocks: ``result[stage][block]``.

    ``value`` is a scalar for all blocks, a sequence with one entry per stage, or a sequence whose entries are
    themselves sequences with one value per block of that stage (the two may be mixed).

    Raises:
        ValueError: If a sequence has the wrong length; the message gives ``name`` and the length expected.
    """
    if not is_sequence(value):
        return [[value] * depth for depth in depths]
    if len(value) != len(depths):
        raise ValueError(f'{name} has {len(value)} values for {len(depths)} stages: {shown(value)}')
    spread = []
    for stage, (entry, depth) in enumerate(zip(value, depths)):
        if not is_sequence(entry):
            spread.append([entry] * depth)
        elif len(entry) != depth:
            raise ValueError(f'{name} of stage {stage} has {len(entry)} values for {depth} blocks: {shown(entry)}')
        else:
            spread.append(list(entry))
    return spread


def drop_path_rates(rate: PerBlock, depths: Sequence[int]) -> list[list[float]]:
    """Drop-path probability of each block: ``result[stage][block]``.

    A scalar is the last block's; it rises to that linearly from 0 over all blocks (Huang et al., "Deep Networks with
    Stochastic Depth", arXiv 1603.09382, section 3). Sequences are taken as :func:`per_block` does.

    Raises:
        ValueError: If a probability is outside [0, 1) or a sequence has the wrong length.
    """
    if not is_number(rate):
        rates = per_block(rate, depths, 'drop_path_rate')
    else:
        rising: Iterator[float] = (rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths)))
        rates = [[next(rising) for _ in range(depth)] for depth in depths]
    if any(not is_number(r) or not 0 <= r < 1 for stage in rates for r in stage):
        raise ValueError(f'drop_path_rate must lie in [0, 1), got {shown(rate)}')
    return [[float(r) for r in stage] for stage in rates]


def window_sizes(
    window_size: WindowSize, depths: Sequence[int], pretrain_grid: Sequence[int]
) -> list[list[int | None]]:
    """Side of the attention windows of each block, in tokens: ``result[stage][block]``; None for global attention.

    Args:
        window_size: A value for all blocks, one per stage or one per block, as :func:`per_block` reads it; each a
            number of tokens, ``'pretrain'`` (as many as the stage has for images of the resolution that the published
            checkpoints were trained at) or None.
        depths: Blocks of each stage.
        pretrain_grid: What ``'pretrain'`` stands for in each stage.

    Raises:
        ValueError: If a value is something else, or a sequence has the wrong length.
    """
    sizes: list[list[int | None]] = []
    for pretrain_size, stage in zip(pretrain_grid, per_block(window_size, depths, 'window_size')):
        sizes.append([])
        for value in stage:
            if value is None:
                sizes[-1].append(None)
            elif isinstance(value, str) and value == 'pretrain':
                sizes[-1].append(pretrain_size)
            elif is_integer(value) and value >= 1:
                sizes[-1].append(int(value))
            else:
                raise ValueError(
                    f"window_size must hold positive integers, 'pretrain' or None, got {shown(value)} in "
                    f'{shown(window_size)}'
                )
    return sizes
