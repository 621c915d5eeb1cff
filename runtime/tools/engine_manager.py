"""Management of a store's engines: listing, verification, removal of one or of all stale ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from ...common.errors import InputError
from ...engine_builder.store.store import EngineStore, Plan
from .engine_list import Checked, check, check_start, chosen, engine_table, one, stale
from .table import Table

LIST, VERIFY, DELETE, DELETE_STALE = "list", "verify", "delete", "delete stale"
ACTIONS = (LIST, VERIFY, DELETE, DELETE_STALE)

OnEngine = Callable[[int, int], None]
"""Callback with the number of engines done and the number of all engines; may raise to stop."""


@dataclass(frozen=True)
class Managed:
    """Result of an action: a line on it, and the table of its engines."""

    line: str
    table: Table


def manage(action: str, start: str, store: EngineStore, device: torch.device, on_engine: OnEngine) -> Managed:
    """Does one of `ACTIONS`; `start` is the beginning of a key.

    `list` and `verify` take every engine whose key begins with `start`, all without it; `delete` takes exactly one;
    `delete stale` takes the engines that other versions have built for this device, and leftovers of dead builds.
    Raises InputError for a text that names no engine, EngineError where there is none, StorageError when one cannot
    be removed.
    """
    check_start(start)
    if action == LIST:
        plans = chosen([start] if start else [], store)
        return Managed(f"{_count(plans)}, {_megabytes(plans)}", engine_table(list(map(Checked, plans)), "there"))
    if action == VERIFY:
        return _verify(chosen([start] if start else [], store), on_engine)
    if action == DELETE:
        return _delete([one(start, store)], store, on_engine)
    if action == DELETE_STALE:
        if start:
            raise InputError(f"Stale engines are removed together: expected no key, found {start}.")
        managed, swept = _delete(stale(store, device), store, on_engine), store.sweep()
        return Managed(f"{managed.line}, and {swept} leftovers of dead builds", managed.table)
    raise InputError(f"The action is one of {', '.join(ACTIONS)}, found {action[:80]!r}.")


def _verify(plans: Sequence[Plan], on_engine: OnEngine) -> Managed:
    checked = []
    for number, plan in enumerate(plans):
        on_engine(number, len(plans))
        checked.append(check(plan))
    damaged = sum(bool(each.error) for each in checked)
    return Managed(f"{_count(plans)}, {damaged} damaged", engine_table(checked, "whole"))


def _delete(plans: Sequence[Plan], store: EngineStore, on_engine: OnEngine) -> Managed:
    for number, plan in enumerate(plans):
        on_engine(number, len(plans))
        store.delete(plan.manifest.key)
    table = engine_table(list(map(Checked, plans)), "removed")
    return Managed(f"removed {_count(plans)}, {_megabytes(plans)}", table)


def _count(plans: Sequence[Plan]) -> str:
    return f"{len(plans)} engine{'' if len(plans) == 1 else 's'}"


def _megabytes(plans: Sequence[Plan]) -> str:
    return f"{sum(plan.manifest.size_bytes for plan in plans) / 1e6:.1f} MB"
