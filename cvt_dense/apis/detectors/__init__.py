"""Whole detectors as functions of an image that other runtimes can compute, and as files."""

from .files import export_detector

__all__ = ['export_detector']
