"""What an engine is called: a digest of everything that could change its bytes or its results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from ...common.spec import EngineSpec, Target

SCHEMA = 1
"""Raised when the meaning of an engine folder changes; older engines are then rebuilt."""


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text in every process."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON, in hexadecimal."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def engine_key(spec: EngineSpec, target: Target) -> str:
    """The name of an engine: 64 hexadecimal digits over specification, target and schema."""
    named = asdict(spec)
    if not spec.rewrites:  # engines from before there were any keep their names
        del named["rewrites"]
    if not spec.calibration:
        del named["calibration"]
    return digest({"schema": SCHEMA, "spec": named, "target": asdict(target)})
