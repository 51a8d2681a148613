"""Predict with a trained detector or segmentor, and write down what it finds."""

from .output import Output
from .predictor import Item, Predictor, Skipped

__all__ = ['Item', 'Output', 'Predictor', 'Skipped']
