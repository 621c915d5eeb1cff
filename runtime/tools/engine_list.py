"""The engines in a store: described, checked, removed. An engine is named by its key, never by a path."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...common.errors import EngineError, InputError
from ...common.shapes import ShapeProfile
from ...common.spec import Target
from ...engine_builder.backends.base import INSIDE, OUTSIDE
from ...engine_builder.backends.registry import BACKENDS
from ...engine_builder.store.store import EngineStore, Plan
from ..engines.messages import precision
from .table import Table

KEY_CHARS = 12
"""Number of a key's digits that are shown, enough to name an engine by."""
LEAST_CHARS = 8
"""Least number of a key's digits that names an engine to remove."""
_START = re.compile(r"[0-9a-f]{1,64}")


@dataclass(frozen=True)
class Checked:
    """An engine whose files were compared with their digests; `error` is the sentence on the damage."""

    plan: Plan
    error: str = ""


def describe(plan: Plan) -> dict[str, Any]:
    """All that a person or a program wants to know of an engine, with a line of text."""
    manifest = plan.manifest
    network, target, verdict = manifest.spec.network, manifest.target, manifest.verdict
    return {
        "key": manifest.key,
        "family": network.family,
        "component": network.component,
        "precision": manifest.spec.precision,
        "islands": list(manifest.islands),
        "weights": INSIDE if manifest.spec.holds_weights else OUTSIDE,
        "backend": target.backend,
        "version": target.backend_version,
        "arch": target.arch,
        "profile": _ranges(manifest.spec.profile),
        "presets": [_ranges(each) for each in manifest.spec.profile.profiles[1:] and manifest.spec.profile.profiles],
        "size_bytes": manifest.size_bytes,
        "build_s": manifest.build_s,
        "created_at": manifest.created_at,
        "cosine": None if verdict is None else verdict.cosine,
        "text": f"{manifest.key[:KEY_CHARS]}  {network.component:<14} {precision(manifest)}  {target.backend} "
        f"{target.arch}  {manifest.size_bytes / 1e6:8.1f} MB  {_match(plan)}  {_sizes(plan)}",
    }


def chosen(keys: Sequence[str], store: EngineStore) -> list[Plan]:
    """The engines whose keys begin with one of `keys`, all if empty; raises EngineError for one without an engine."""
    plans = list(store.plans())
    for start in keys:
        if not any(plan.manifest.key.startswith(start) for plan in plans):
            raise EngineError(f"No engine in {store.root} has a key that begins with {start[:64]}.")
    return [plan for plan in plans if not keys or plan.manifest.key.startswith(tuple(keys))]


def one(start: str, store: EngineStore) -> Plan:
    """Engine whose key begins with `start`; raises InputError for few digits or several, EngineError for none."""
    check_start(start)
    if len(start) < LEAST_CHARS:
        raise InputError(f"One engine is named by at least {LEAST_CHARS} digits of its key, found {start!r}.")
    plans = chosen([start], store)
    if len(plans) > 1:
        raise InputError(f"Expected one engine, found {len(plans)} whose keys begin with {start}.")
    return plans[0]


def check_start(start: str) -> str:
    """The text as the beginning of a key, or nothing; raises InputError for a text that cannot be one."""
    if start and not _START.fullmatch(start):
        raise InputError(f"An engine is named by digits of its key, 0 to 9 and a to f, found {start[:80]!r}.")
    return start


def check(plan: Plan) -> Checked:
    """Compares every file of an engine with its digest."""
    try:
        plan.verify()
    except EngineError as error:
        return Checked(plan, str(error))
    return Checked(plan)


def stale(store: EngineStore, device: torch.device) -> list[Plan]:
    """Engines that other versions than the installed ones have built for this device, and that are never used.

    Engines for other GPUs, and those of a backend that cannot run here, are not among them.
    """
    here: dict[str, Target] = {}
    for name, backend in BACKENDS.items():
        if backend.builds and backend.availability(device).ok:
            here[name] = backend.target(device)
    return [plan for plan in store.plans() if _is_stale(plan.manifest.target, here.get(plan.manifest.target.backend))]


def engine_table(checked: Sequence[Checked], state: str) -> Table:
    """Engines in rows, the damaged ones with their error in place of `state`."""
    rows = [
        (
            each.plan.manifest.key[:KEY_CHARS],
            each.plan.manifest.spec.network.component,
            f"{each.plan.manifest.target.backend} {each.plan.manifest.target.arch} {precision(each.plan.manifest)}",
            f"{each.plan.manifest.size_bytes / 1e6:.1f} MB",
            _match(each.plan),
            _sizes(each.plan),
            each.error or state,
        )
        for each in checked
    ]
    return Table(("key", "network", "built for", "size", "match", "shapes", "state"), tuple(rows))


def _is_stale(target: Target, here: Target | None) -> bool:
    if here is None or (target.device, target.arch) != (here.device, here.arch):
        return False
    return target != here


def _match(plan: Plan) -> str:
    verdict = plan.manifest.verdict
    return "unverified here" if verdict is None else f"cosine {verdict.cosine:.7f}"


def _ranges(profile: ShapeProfile) -> dict[str, list[int]]:
    return {name: [limits.min, limits.opt, limits.max] for name, limits in profile.ranges.items()}


def _sizes(plan: Plan) -> str:
    return " or ".join(map(_size, plan.manifest.spec.profile.profiles))


def _size(profile: ShapeProfile) -> str:
    return ", ".join(
        f"{name} {limits.min}" if limits.min == limits.max else f"{name} {limits.min}-{limits.max}"
        for name, limits in profile.ranges.items()
    )
