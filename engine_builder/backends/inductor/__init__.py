"""AOTInductor: PyTorch's own compiler, ahead of time."""
