"""Checkpoints of random weights in the published layouts, tiny or at full size."""
