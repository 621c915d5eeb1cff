"""Packages that only some commands need: installed into run.py's own environment when one of those is asked for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from .environment import ROOT, Installer, only_one, say

FLEET = ROOT / "remote" / "fleet" / "requirements.txt"
FLEET_MODULES = ("ray", "aiohttp")
EXTRA_LOCK = "i2v-extra-lock"


def complete_fleet(installer: Installer | None = None) -> None:
    """Installs what a fleet needs where it is missing; raises EnvironmentSetupError where that fails."""
    _complete(FLEET, FLEET_MODULES, installer or Installer())


def _complete(requirements: Path, modules: tuple[str, ...], installer: Installer) -> None:
    if _has_all(modules):
        return
    python = Path(sys.executable)
    with only_one(Path(sys.prefix) / EXTRA_LOCK, f"Another run is completing {sys.prefix}; waiting ..."):
        importlib.invalidate_caches()
        if not _has_all(modules):
            say(f"Installing {' and '.join(modules[:2])} (this once) ...")
            installer.install(python, [requirements])
            importlib.invalidate_caches()


def _has_all(modules: tuple[str, ...]) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in modules)
