"""CvT (arXiv 2103.15808) and CMT (arXiv 2107.06263), convolutional transformers, as backbones for dense prediction.

Importing the package registers ``cvt_13``, ``cmt_s`` and the other variants in timm and, in mmengine's root registries,
``CvT``, ``CMT`` and what goes with them in training: the latter once mmengine is imported too, whichever of the two
comes first, so that plain PyTorch and timm are used without mmengine.
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
from .backbones.timm_cmt import CMTClassifier
from .checkpoints import load_pretrained
from .errors import CheckpointError
from .models.cmt import CMTTrunk
from .models.cvt import ARCHS, Arch, CvTTrunk
from .version import __version__

if TYPE_CHECKING:
    from .backbones.cmt import CMT
    from .backbones.cvt import CvT

__all__ = [
    'ARCHS',
    'CMT',
    'Arch',
    'CMTClassifier',
    'CMTTrunk',
    'CheckpointError',
    'CvT',
    'CvTClassifier',
    'CvTTrunk',
    '__version__',
    'load_pretrained',
]

#: Modules of the backbones that need mmengine.
_BACKBONES = {'CvT': 'cvt', 'CMT': 'cmt'}


@when_imported('mmengine')
def _register(mmengine: Any) -> None:
    """Import what registers something in mmengine."""
    for module in (
        'backbones.cvt',
        'backbones.cmt',
        'backbones.fsdp',
        'datasets.transforms',
        'engine.checkpoint_files',
        'engine.divergence',
        'engine.interruption',
        'engine.layer_decay',
        'engine.precision',
        'engine.resume',
        'engine.resume_notes',
        'engine.workers',
        'visualization.backends',
        'visualization.hooks',
    ):
        import_module(f'{__name__}.{module}')


def __getattr__(name: str) -> Any:
    if name not in _BACKBONES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    if not find_spec('mmengine'):
        raise ImportError(
            f'cvt_dense.{name} needs mmengine: pip install mmengine, or its maintained fork onedl-mmengine'
        )
    return getattr(import_module(f'{__name__}.backbones.{_BACKBONES[name]}'), name)
