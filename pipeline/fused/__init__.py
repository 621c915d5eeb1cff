"""Blocks of networks whose layers run fused."""
