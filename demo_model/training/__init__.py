"""Trains the demonstration checkpoint on procedural clips, and measures what it can do."""
