"""Checkpoints in the layout of Hugging Face's cache: `models--OWNER--NAME/snapshots/REVISION`, its files links."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from .diffusers_folder import INDEX

_PREFIX = "models--"


def snapshots(root: Path) -> Iterator[tuple[str, Path]]:
    """The folder of each repository below `root` that is a pipeline's, by the repository's name.

    Of several revisions the one that the branch `main` was at when it was last downloaded, else the newest.
    """
    for repository in sorted(root.glob(f"{_PREFIX}*")):
        found = {path.parent.name: path.parent for path in repository.glob(f"snapshots/*/{INDEX}")}
        if found:
            newest = max(found.values(), key=lambda folder: folder.lstat().st_mtime_ns)
            yield repository.name.removeprefix(_PREFIX).replace("--", "/"), found.get(_main(repository), newest)


def _main(repository: Path) -> str:
    """The revision of the branch `main`; empty where none is written down."""
    try:
        return (repository / "refs" / "main").read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""
