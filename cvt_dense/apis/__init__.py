"""What tools and users call: predict with a trained model, or an exported file, on files; and export models."""

from typing import TYPE_CHECKING, Any

from .file_predictor import FilePredictor
from .inputs import find_inputs
from .items import Item, Skipped
from .output import Output
from .run import choose_device, predict_files

if TYPE_CHECKING:
    from .predictor import Predictor

__all__ = [
    'FilePredictor',
    'Item',
    'Output',
    'Predictor',
    'Skipped',
    'choose_device',
    'find_inputs',
    'predict_files',
]


def __getattr__(name: str) -> Any:
    if name != 'Predictor':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from .predictor import Predictor  # needs mmengine, which exported files do without

    return Predictor
