"""Own GPU kernels, each with a reference in plain PyTorch that gives the same result on any device."""
