"""CvT (Convolutional vision Transformer, arXiv 2103.15808) as a backbone for dense prediction.

Importing the package registers ``CvT`` in mmengine's root registry, if mmengine is installed; the trunk itself needs
nothing but PyTorch and timm.
"""

from importlib.util import find_spec
from typing import Any

from .arch import ARCHS, Arch
from .checkpoints import CheckpointError, load_pretrained
from .trunk import CvTTrunk
from .version import __version__

if find_spec('mmengine'):
    from .backbone import CvT

__all__ = ['ARCHS', 'Arch', 'CheckpointError', 'CvT', 'CvTTrunk', '__version__', 'load_pretrained']


def __getattr__(name: str) -> Any:
    if name == 'CvT':
        raise ImportError('cvt_dense.CvT needs mmengine: pip install "cvt_dense[onedl]" or "cvt_dense[openmmlab]"')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
