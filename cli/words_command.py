"""`run.py words`: writes the files that follow from the nodes' schemas, or checks them.

Standard library only: no environment has to be made for it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.atomic_file import write_text
from ..common.errors import I2VError
from ..remote.comfyui.server import (
    ServerStartError,
    find_comfyui,
    link_pack,
    not_found_reason,
    read_object_info,
    start_server,
)
from .environment import ROOT, say
from .node_info import PREFIX, STORED, contract, english
from .node_pages import help_page, with_rows

COMMAND = "python run.py words"
READMES = {"README.md": "en", "README.zh-CN.md": "zh"}
"""The language of each README."""
ARGUMENTS = ("--cpu", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")
ENGLISH = "locales/en/nodeDefs.json"
Infos = Mapping[str, Mapping[str, Any]]
"""ComfyUI's object_info: a node's inputs, outputs and words by its class."""

DESCRIPTION = """\
Write what follows from the nodes' schemas: the list of nodes that the tests stand on, the English
locale, the READMEs' tables of nodes, and the help pages that are missing, to be completed by hand.

A ComfyUI on this machine (COMFYUI_DIR, or comfy-cli's default workspace) is started for a moment and
asked for the schemas; where there is none, the READMEs and help pages follow from the stored words."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("run.py words", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    top.add_argument("--check", action="store_true", help="write nothing; the status is 1 if something is stale")
    top.add_argument("--server", metavar="URL", help="ask this ComfyUI, which has the pack, and start none")
    return top


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Writes or checks the files below the root and says which; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        stale = outdated(root, _object_info(options.server))
        if not options.check:
            write(stale)
    except (I2VError, OSError, ValueError, ServerStartError) as error:
        sys.stderr.write(f"run.py words: {error}\n")
        return 1
    for path in stale:
        say(f"{'stale' if options.check else 'wrote'} {path.relative_to(root)}")
    if stale and options.check:
        say(f"run: {COMMAND}")
    return int(bool(stale and options.check))


def outdated(root: Path, infos: Infos | None) -> dict[Path, str]:
    """The files below the root whose text differs from the one that follows from the schemas, with that text."""
    wanted = generated(root, infos)
    return {path: text for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text}


def generated(root: Path, infos: Infos | None) -> dict[Path, str]:
    """The text of each file that follows from the schemas: ComfyUI's own or, without it, the stored ones.

    A help page that exists is left to its authors, and is none of these files.
    """
    locales = {path.parent.name: _read(path) for path in sorted((root / "locales").glob("*/nodeDefs.json"))}
    texts: dict[Path, str] = {}
    if infos is not None:
        ours = {name: info for name, info in infos.items() if name.startswith(PREFIX)}
        entries = {name: entry for name, entry in _read(root / STORED).items() if not name.startswith(PREFIX)}
        entries.update({name: contract(name, info) for name, info in ours.items()})
        texts[root / STORED] = json.dumps(dict(sorted(entries.items())), indent=1) + "\n"
        locales["en"] = {name: english(name, info) for name, info in ours.items()}
        texts[root / ENGLISH] = json.dumps(locales["en"], indent=2, ensure_ascii=False) + "\n"
    for name, language in READMES.items():
        texts[root / name] = with_rows((root / name).read_text("utf-8"), locales["en"], locales[language])
    return texts | _missing_help(root, locales)


def write(texts: Mapping[Path, str]) -> None:
    """Writes each text to its file; raises StorageError when a file cannot be written."""
    for path, text in texts.items():
        write_text(path, text)


def _missing_help(root: Path, locales: Mapping[str, Mapping[str, Any]]) -> dict[Path, str]:
    """A skeleton for each help page that is missing in a language which has the node's words."""
    pages = {
        root / "web" / "docs" / name / f"{language}.md": (locales["en"][name], entry, language)
        for language, entries in locales.items()
        for name, entry in entries.items()
        if name in locales["en"]
    }
    return {path: help_page(*words) for path, words in pages.items() if not path.exists()}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _object_info(url: str | None) -> Infos | None:
    """Description of all nodes by the server at the address, or else by a ComfyUI of this machine; None without any."""
    if url is not None:
        return read_object_info(url)
    host = find_comfyui()
    if host is None:
        say(f"The schemas are taken as they are stored: {not_found_reason()}.")
        return None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        link_pack(ROOT, Path(folder))
        with start_server(host, Path(folder), ARGUMENTS) as server:
            return read_object_info(server.url)
