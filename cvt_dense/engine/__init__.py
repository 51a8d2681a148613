"""Runs of mmengine: how they start, stop, go on, and what they write."""

import mmengine  # noqa: F401  before the modules below, which are registered as it is imported

from .channels import fill_in_channels
from .checkpoint_files import load_checkpoints_safely, write_files_atomically
from .faults import silent_faults
from .resume import make_resumable

__all__ = ['fill_in_channels', 'load_checkpoints_safely', 'make_resumable', 'silent_faults', 'write_files_atomically']
