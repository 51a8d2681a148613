"""CvT (Convolutional vision Transformer, arXiv 2103.15808) as a backbone for dense prediction.

Importing the package registers ``cvt_13``, ``cvt_21`` and ``cvt_w24`` in timm and, in mmengine's root registries,
``CvT`` and what goes with it in training: the latter once mmengine is imported too, whichever of the two comes first,
so that plain PyTorch and timm are used without mmengine.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

if torch.__version__ < (2, 6):
    raise ImportError(
        f'cvt_dense needs torch 2.6 or later, for its safe reading of checkpoints; this is {torch.__version__}'
    )

from wrapt import when_imported

from .backbones.timm import CvTClassifier
from .checkpoints import load_pretrained
from .errors import CheckpointError
from .models.cvt import ARCHS, Arch, CvTTrunk
from .version import __version__

if TYPE_CHECKING:
    from .backbones.cvt import CvT

__all__ = ['ARCHS', 'Arch', 'CheckpointError', 'CvT', 'CvTClassifier', 'CvTTrunk', '__version__', 'load_pretrained']


@when_imported('mmengine')
def _register(mmengine: Any) -> None:
    """Import what registers something in mmengine."""
    for module in (
        'backbones.cvt',
        'engine.checkpoint_files',
        'engine.divergence',
        'engine.interruption',
        'engine.layer_decay',
        'engine.precision',
        'engine.resume',
        'engine.resume_notes',
        'engine.workers',
        'visualization.hooks',
    ):
        import_module(f'{__name__}.{module}')


def __getattr__(name: str) -> Any:
    if name != 'CvT':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if not find_spec('mmengine'):
        raise ImportError('cvt_dense.CvT needs mmengine: pip install mmengine, or its maintained fork onedl-mmengine')
    from .backbones.cvt import CvT

    return CvT
