"""Engines on disk: keys, manifests, seals and quarantine."""
