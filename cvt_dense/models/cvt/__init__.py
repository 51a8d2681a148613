"""CvT: Wu et al., "CvT: Introducing Convolutions to Vision Transformers", arXiv 2103.15808."""

from .arch import ARCHS, Arch
from .trunk import CvTTrunk

__all__ = ['ARCHS', 'Arch', 'CvTTrunk']
