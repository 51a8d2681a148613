"""Random numbers that depend on a place in a run alone, and not on what was drawn before."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np
import torch


class SeededIndex(NamedTuple):
    """A sample, and the seed of what is drawn at random while it is loaded."""

    index: int
    seed: int


def derived_seed(*place: int) -> int:
    """A seed for a place in a run, as good as unrelated to that of any other."""
    return int(np.random.SeedSequence([abs(part) for part in place]).generate_state(1)[0])


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
