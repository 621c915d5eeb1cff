"""Filters over engines: the networks of `pipeline/filters` as engines are found for them, and whole clips of frames."""
