"""What the benchmarks of builds share: their options, their loop, and the file of rows that grows with each build."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..common.errors import I2VError
from .ladder.machine import describe_commit, describe_machine, describe_versions, now

AnyCase = TypeVar("AnyCase")


def case_parser(name: str, description: str | None, results: Path) -> argparse.ArgumentParser:
    """The options that choose builds, and say where their results go."""
    top = argparse.ArgumentParser(f"run.py bench {name}", description=description)
    top.add_argument("--only", metavar="WORDS", default="", help="the builds whose line holds these words alone")
    top.add_argument("--out", type=Path, default=results, metavar="DIR", help="where the results go (%(default)s)")
    top.add_argument("--list", action="store_true", help="name the builds and end")
    return top


def run_cases(options: argparse.Namespace, cases: Iterable[AnyCase], build: Callable[[AnyCase], str]) -> int:
    """Builds the chosen cases one after another and prints what `build` says of each; 1 if any failed."""
    chosen, failed = [case for case in cases if options.only in str(case)], 0
    if options.list:
        sys.stdout.write("".join(f"{case}\n" for case in chosen))
        return 0
    for case in chosen:
        try:
            line = build(case)
        except I2VError as error:
            failed += 1
            sys.stderr.write(f"{case}: {error}\n")
        else:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    return 1 if failed else 0


def add_row(path: Path, case: object, row: Mapping[str, Any], cases: Iterable[object], **head: Any) -> dict[str, Any]:
    """Adds a row to a file of results, in place of an older one of the same build; the whole document."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else {}
    rows[str(case)] = {**row, "commit": describe_commit(None), "at": now()}
    document = {
        **head,
        "machine": describe_machine(torch.device("cpu")),
        "versions": describe_versions(),
        "rows": {str(each): rows[str(each)] for each in cases if str(each) in rows},
    }
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    return document
