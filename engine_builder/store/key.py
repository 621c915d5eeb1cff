"""Key of an engine: a digest of everything that could change its bytes or its results."""

from __future__ import annotations

from dataclasses import asdict

from ...common.digest import digest
from ...common.spec import EngineSpec, Target, named_network

SCHEMA = 1
"""Raised when the meaning of an engine folder changes; older engines are then rebuilt."""


def engine_key(spec: EngineSpec, target: Target) -> str:
    """The name of an engine: 64 hexadecimal digits over specification, target and schema."""
    named = {**asdict(spec), "network": named_network(spec.network)}
    if not spec.rewrites:  # engines from before there were any keep their names
        del named["rewrites"]
    if not spec.calibration:
        del named["calibration"]
    return digest({"schema": SCHEMA, "spec": named, "target": asdict(target)})
