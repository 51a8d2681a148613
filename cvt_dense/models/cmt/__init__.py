"""CMT: Guo et al., "CMT: Convolutional Neural Networks Meet Vision Transformers", arXiv 2107.06263."""

from .arch import ARCHS, Arch
from .trunk import CMTTrunk

__all__ = ['ARCHS', 'Arch', 'CMTTrunk']
