"""The environment of a child process: the host's, without what the host chose for its own memory alone."""

from __future__ import annotations

import os
from collections.abc import Mapping

ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Where PyTorch reads the settings of its allocator, under its names over time."""


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables for a child, with `changes`.

    ComfyUI writes its choice of PyTorch's allocator into its own environment; with cudaMallocAsync a child could
    capture no CUDA graph. What else stands in those variables is the user's and stays.
    """
    found = {**os.environ, **(changes or {})}
    for name in ALLOCATORS:
        settings = [each for each in found.pop(name, "").split(",") if each.strip()]
        kept = [each for each in settings if not each.strip().startswith("backend:")]
        if kept:
            found[name] = ",".join(kept)
    return found
