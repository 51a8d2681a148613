"""What a run reads: where it is, what is wrong with it, and the scenes that the demo trains on."""
