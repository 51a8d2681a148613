"""Published CvT weights: recognise them, find them, load them, and say plainly what is wrong with them."""

from .load import LoadReport, load_pretrained
from .sources import PUBLISHED, CheckpointError, Published

__all__ = ['PUBLISHED', 'CheckpointError', 'LoadReport', 'Published', 'load_pretrained']
