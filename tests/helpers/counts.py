"""Tests with a count: a short form in every run, the full ones under the marker `torture`; and what they note."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

log = logging.getLogger(__name__)

Evidence = Callable[[str, int, str], None]
"""The fixture `evidence`: takes a name, the count, and what was found."""
REPORT_FOLDER = "I2VTRT_GPU_REPORT"
"""Names a folder for what the long tests find as they go on."""


def counted(short: int, *full: int, slow: bool = False) -> pytest.MarkDecorator:
    """Gives a test its `count`; `slow` where the short form takes more than ten seconds."""
    few = pytest.param(short, marks=pytest.mark.slow) if slow else short
    return pytest.mark.parametrize("count", [few, *(pytest.param(each, marks=pytest.mark.torture) for each in full)])


def note(name: str, found: Any) -> None:
    """Says in the log what has been found so far, and writes it to `name`.json in the report's folder, if it has one.

    A long test that is cut short has said all that it had found: `pytest -o log_cli=true --log-cli-level=INFO`.
    """
    text = json.dumps(found)
    log.info("%s %s", name, text)
    folder = os.environ.get(REPORT_FOLDER)
    if folder:
        path = Path(folder) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(f"{text}\n", "utf-8")
        part.replace(path)
