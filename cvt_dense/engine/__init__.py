"""Runs of the engine: how they start, stop, go on, and what they save."""
