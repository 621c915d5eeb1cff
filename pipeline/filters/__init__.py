"""Frames in, frames out: smoother, larger, or seen by any picture network; plain PyTorch on bounded streams."""
