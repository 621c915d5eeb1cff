"""The reports of users that this pack answers: each has tests that exist, and those that have are counted."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "files"
YES = "yes"
LAST_OF_FILES = 25
"""The last report on the files that people have; later ones are on saving, clients and hosts."""


def reports() -> dict[str, dict[str, Any]]:
    """Every report by its number."""
    return json.loads((ROOT / "tests" / "reports.json").read_text("utf-8"))


def environments() -> dict[str, dict[str, str]]:
    """What ran beside other versions, as `run.py bench environments` saw it."""
    return json.loads((RESULTS / "environments.json").read_text("utf-8"))


def functions(path: Path) -> set[str]:
    """The functions that a file defines."""
    return {node.name for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("number", reports())
def test_the_tests_of_a_report_exist(number: str) -> None:
    for test in reports()[number]["tests"]:
        file, _, name = test.partition("::")
        assert name in functions(ROOT / file), test


def test_settled_reports_are_counted() -> None:
    """One is settled where tests hold what happens now; the figure counts those on files."""
    of_files = {name: row for name, row in reports().items() if name.isdecimal() and int(name) <= LAST_OF_FILES}
    settled = sum(bool(report["tests"]) for report in of_files.values())
    figures = json.loads((RESULTS / "figures.json").read_text("utf-8"))
    assert figures["reports_settled"] == settled


@pytest.mark.parametrize("version", ["PyAV 14", "PyAV 15", "PyAV 16", "the newest of all"])
def test_every_pyav_writes_every_format(version: str) -> None:
    found = environments()[version]
    assert {name: found[name] for name in ("mp4-h264", "webm-vp9", "mkv-ffv1", "webp", "gif")} == dict.fromkeys(
        ("mp4-h264", "webm-vp9", "mkv-ffv1", "webp", "gif"), YES
    )


@pytest.mark.parametrize("version", ["transformers 4.50", "transformers 5.0", "transformers 5.2", "the newest of all"])
def test_wan_makes_a_clip_beside_each_transformers(version: str) -> None:
    assert environments()[version]["clip of Wan 2.1"] == YES


@pytest.mark.parametrize("version", ["onnxruntime-gpu before", "protobuf 4 and numpy 1 before"])
def test_what_others_share_is_kept(version: str) -> None:
    assert environments()[version]["kept what was there"] == YES
