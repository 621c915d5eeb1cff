"""The judge of `run.py evaluate`: presets against the exact clip, in seconds and in quality."""
