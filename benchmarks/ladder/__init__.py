"""The ladder: every way to make one clip here, from diffusers in fp32 to the fastest engine, in one table."""

from .command import main

__all__ = ["main"]
