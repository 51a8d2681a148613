"""CvT (Convolutional vision Transformer, arXiv 2103.15808) as a backbone for dense prediction.

Importing the package registers ``cvt_13``, ``cvt_21`` and ``cvt_w24`` in timm and, if mmengine is installed, ``CvT``
and what goes with it in training in its root registries; the trunk itself needs nothing but PyTorch and timm.
"""

from importlib.util import find_spec
from typing import Any

import torch

if torch.__version__ < (2, 6):
    raise ImportError(
        f'cvt_dense needs torch 2.6 or later, for its safe reading of checkpoints; this is {torch.__version__}'
    )

from .backbones.timm import CvTClassifier
from .checkpoints import load_pretrained
from .errors import CheckpointError
from .models.cvt.arch import ARCHS, Arch
from .models.cvt.trunk import CvTTrunk
from .version import __version__

if find_spec('mmengine'):
    # registered for configs
    from .backbones.cvt import CvT
    from .engine import devices, divergence, interruption, layer_decay, precision, resume, workers  # noqa: F401
    from .visualization import hooks  # noqa: F401

__all__ = ['ARCHS', 'Arch', 'CheckpointError', 'CvT', 'CvTClassifier', 'CvTTrunk', '__version__', 'load_pretrained']


def __getattr__(name: str) -> Any:
    if name == 'CvT':
        raise ImportError('cvt_dense.CvT needs mmengine: pip install mmengine, or its maintained fork onedl-mmengine')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
