"""Runs of mmengine: how they start, stop, go on, and what they write."""

import mmengine  # noqa: F401  before the modules below, which are registered as it is imported

from .checkpoint_files import load_checkpoints_safely, write_files_atomically
from .resume import make_resumable

__all__ = ['load_checkpoints_safely', 'make_resumable', 'write_files_atomically']
