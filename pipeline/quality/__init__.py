"""Similarity of clips."""
