"""What is said of an environment: yes, a number for a longer sentence below the table, or nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.benchmarks import environments
from i2v_tensorrt.benchmarks.environment_checks import PROVIDERS, YES, _loads, finding, table
from i2v_tensorrt.benchmarks.environments import CASES, Case
from i2v_tensorrt.common.errors import CheckpointError


def raising(error: Exception) -> Any:
    def check() -> str:
        raise error

    return check


def test_a_finding_is_the_sentence_that_a_user_reads() -> None:
    assert finding(lambda: YES) == YES
    assert finding(raising(CheckpointError("Expected one, found none."))) == "Expected one, found none."
    path = f"{sys.prefix}/lib/x.py"
    assert finding(raising(AttributeError(f"no name\n in {path}"))) == "AttributeError: no name in /lib/x.py"


def test_what_the_nodes_import_can_be_imported() -> None:
    assert _loads() == YES


def test_words_stand_below_the_table_each_once() -> None:
    one = {"versions": "av 18", "a clip": "It broke.", PROVIDERS: "CPU"}
    other = {"versions": "av 14", "a clip": "It broke.", PROVIDERS: "CPU", "kept what was there": YES}
    assert table({"new": one, "old": other}) == [
        f"| environment | versions | a clip | {PROVIDERS} | kept what was there |",
        "| --- | --- | --- | --- | --- |",
        "| new | av 18 | no (1) | CPU |  |",
        "| old | av 14 | no (1) | CPU | yes |",
        "",
        "1. It broke.",
    ]


def test_an_environment_that_cannot_be_made_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one(case: Case, models: Path, folder: Path) -> dict[str, str]:
        if case == CASES[1]:
            raise subprocess.CalledProcessError(1, ["pip"])
        return {"a clip": YES}

    monkeypatch.setattr(environments, "_one", one)
    earlier = {CASES[1].name: {"a clip": "It broke."}, "an environment of before": {}}
    (tmp_path / "environments.json").write_text(json.dumps(earlier))
    assert environments._run(CASES[:3], tmp_path, tmp_path, tmp_path) == 1
    seen = json.loads((tmp_path / "environments.json").read_text())
    expected = {CASES[0].name: {"a clip": YES}, CASES[1].name: {"a clip": "It broke."}, CASES[2].name: {"a clip": YES}}
    assert seen == expected and list(seen) == list(expected)
    assert "1. It broke." in (tmp_path / "environments.md").read_text()
