"""The manifest of an engine folder: the engine's specification, its parity check, and proof that this host wrote it."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ...common.digest import canonical_json
from ...common.errors import EngineError, OtherVersionError
from ...common.spec import EngineSpec, Target, spec_from_dict
from .key import SCHEMA, engine_key

FILE_NAME = "manifest.json"
MAX_BYTES = 1 << 20
REMEMBERED = 256
"""Manifests that are remembered: all engines are looked at for each network of each prompt, 2 ms each."""


@dataclass(frozen=True)
class FileDigest:
    """Size and SHA-256 of one file of an engine."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class ParityReport:
    """Result of the parity check: the engine against eager PyTorch, worst over `shapes`.

    `cosine` and `snr_db` compare all outputs at once; `max_abs` is the greatest absolute difference. At each shape
    the engine ran `timesteps` times, spread over the schedule; once for a network that has none.
    """

    cosine: float
    snr_db: float
    max_abs: float
    finite: bool
    shapes: tuple[dict[str, int], ...]
    timesteps: int = 1


@dataclass(frozen=True)
class Manifest:
    """All that is known of an engine on disk."""

    spec: EngineSpec
    target: Target
    files: Mapping[str, FileDigest]
    verdict: ParityReport | None
    """None for an engine that has not met its GPU yet: it is checked before its first use."""
    build_s: float
    created_at: str
    details: Mapping[str, str] = field(default_factory=dict)
    islands: tuple[str, ...] = ()
    """The modules of an fp16 network that compute in fp32, for fp16 cannot hold their numbers."""

    @property
    def key(self) -> str:
        """The engine's name."""
        return engine_key(self.spec, self.target)

    @property
    def size_bytes(self) -> int:
        """The sum of the engine's files."""
        return sum(entry.size_bytes for entry in self.files.values())


def seal(manifest: Manifest, secret: bytes) -> str:
    """The manifest's text, with an HMAC-SHA256 under this installation's secret."""
    body = {"schema": SCHEMA, "key": manifest.key, **asdict(manifest)}
    return json.dumps({"body": body, "hmac": _mac(body, secret)}, indent=1, sort_keys=True)


@lru_cache(maxsize=REMEMBERED)
def unseal(text: str, secret: bytes, name: str) -> Manifest:
    """The manifest in `text`; `name` is the folder that it should describe. Looked at again, it is not read again.

    Raises OtherVersionError when another version of the pack wrote it here, EngineError when it is malformed,
    was written by another installation, or names another engine.
    """
    try:
        sealed = json.loads(text, object_pairs_hook=_without_duplicates)
        body, mac = sealed["body"], sealed["hmac"]
        if not (isinstance(mac, str) and hmac.compare_digest(mac, _mac(body, secret))):
            raise EngineError(f"Engine {name[:12]} was not written by this installation, or its manifest was changed.")
        if body["schema"] != SCHEMA:
            raise OtherVersionError(f"Engine {name[:12]} is of schema {body['schema']!r}, expected {SCHEMA}.")
        manifest = _from_body(body)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"Engine {name[:12]} has a malformed manifest ({error}).") from error
    if manifest.key != name:
        raise EngineError(f"Engine {name[:12]} has the manifest of another engine.")
    return manifest


def parity_report_from_dict(data: Mapping[str, Any] | None) -> ParityReport | None:
    """Rebuilds a Verdict from `dataclasses.asdict` after JSON."""
    return None if data is None else ParityReport(**{**data, "shapes": tuple(data["shapes"])})


def _from_body(body: dict[str, Any]) -> Manifest:
    return Manifest(
        spec=spec_from_dict(body["spec"]),
        target=Target(**body["target"]),
        files={name: FileDigest(**entry) for name, entry in body["files"].items()},
        verdict=parity_report_from_dict(body["verdict"]),
        build_s=float(body["build_s"]),
        created_at=str(body["created_at"]),
        details=dict(body["details"]),
        islands=tuple(body.get("islands", ())),  # engines from before there were any have none
    )


def _mac(body: Any, secret: bytes) -> str:
    return hmac.new(secret, canonical_json(body).encode(), hashlib.sha256).hexdigest()


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def file_digest(path: Path) -> FileDigest:
    """Size and SHA-256 of a file, read in blocks of 4 MiB."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as stream:
        while block := stream.read(4 << 20):
            sha.update(block)
            size += len(block)
    return FileDigest(size, sha.hexdigest())
