"""Fewer and cheaper calls for the same clip: functions around `denoise(x, t)` that know no family, engine or node.

Each accelerator is a function from a denoising function to one of the same signature, made anew for every clip, so that
its state belongs to that clip alone. They compose from the network outwards: deep features, guidance, step cache.
"""
