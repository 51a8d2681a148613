"""Publish what a run trained: weights, the backbone for timm, config, metrics and a model card."""
