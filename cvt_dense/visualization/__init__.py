"""Pictures: predictions, curves, and what a run draws as it goes on."""
