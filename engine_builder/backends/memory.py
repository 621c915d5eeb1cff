"""How libraries say that the GPU's memory ran out; hosts know PyTorch's own error alone."""

from __future__ import annotations


def is_out_of_memory(reason: str) -> bool:
    """Whether a library's sentence says that memory ran out."""
    text = reason.lower()
    named = ("alloc_failed", "bad alloc", "bad_alloc")  # CUDA libraries, C++ on each platform
    return any(name in text for name in named) or ("memory" in text and ("out of" in text or "alloc" in text))
