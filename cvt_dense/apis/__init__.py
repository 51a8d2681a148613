"""What tools and users call: predict with a trained model on files, and export models."""

from .inputs import find_inputs
from .output import Output
from .predictor import Item, Predictor, Skipped
from .run import choose_device, predict_files

__all__ = ['Item', 'Output', 'Predictor', 'Skipped', 'choose_device', 'find_inputs', 'predict_files']
