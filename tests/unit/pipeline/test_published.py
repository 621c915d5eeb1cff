"""The commands that download published checkpoints are the same wherever one is shown."""

import json
import re
from pathlib import Path

import pytest

from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.pipeline.models.checkpoints.published import PUBLISHED, download_command

ROOT = Path("models/i2v")
SHOWN = [*PACK.glob("README*.md"), *(PACK / "docs").glob("files*.md"), *(PACK / "workflows").glob("*.json")]


def commands(path: Path) -> set[str]:
    """Those that a page, or a workflow's note, shows."""
    text = path.read_text("utf-8")
    texts = [text] if path.suffix == ".md" else re.findall(r'"((?:[^"\\]|\\.)*hf download(?:[^"\\]|\\.)*)"', text)
    plain = texts if path.suffix == ".md" else [json.loads(f'"{each}"') for each in texts]
    return {command.strip("` ") for each in plain for command in re.findall(r"hf download [^`\n]+", each)}


def test_every_page_and_note_shows_the_same_commands() -> None:
    known = {str(download_command(name, ROOT)).replace(f'"{ROOT / name}"', str(ROOT / name)) for name in PUBLISHED}
    assert commands(PACK / "docs" / "files.md") == known
    shown = {path.name: commands(path) for path in SHOWN}
    assert sum(map(bool, shown.values())) >= 8
    assert {name: found - known for name, found in shown.items() if found - known} == {}


@pytest.mark.parametrize("name", ["none-such", "../../../etc", ""])
def test_what_is_not_published_has_no_command(name: str) -> None:
    assert download_command(name, ROOT) is None
