"""Published weights: recognise, find and load them, and say what is wrong with them."""

from .load import LoadReport, load_pretrained, read_checkpoint
from .published import PUBLISHED, Published

__all__ = ['PUBLISHED', 'LoadReport', 'Published', 'load_pretrained', 'read_checkpoint']
