"""CONTRIBUTING.md is right: its worked examples are followed word by word in a copy, and pass their own tests."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.remote.comfyui.server import find_comfyui, not_found_reason

from .test_rooms import ALLOWED

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
NOT_COPIED = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "out", "*.safetensors")
NEW, CHANGE, MERGE, RUN, RUN_LIVE = "New file", "In", "Add to", "Run", "With a ComfyUI, run"
LEAD = re.compile(rf"({NEW}|{CHANGE}|{MERGE}) `([^`]+)`:|({RUN_LIVE}|{RUN}):")
EXAMPLES = ("Add a family", "Add a backend", "Add a node", "Add a language")
LIVE = "Add a node"
"""The example whose command needs a ComfyUI."""


@dataclass(frozen=True)
class Step:
    """One fenced block: what to do with it, to which file, and what stands in it."""

    kind: str
    path: str
    body: str


def sections(markdown: str) -> dict[str, list[str]]:
    """The lines below each heading of the second level; what is fenced holds no headings."""
    found: dict[str, list[str]] = {}
    lines, fenced = [], False
    for line in markdown.splitlines():
        fenced ^= line.startswith("```")
        if line.startswith("## ") and not fenced:
            lines = found.setdefault(line.removeprefix("## "), [])
        else:
            lines.append(line)
    return found


def steps(lines: list[str]) -> Iterator[Step]:
    """The blocks of a section in their order; raises where no line says what to do with one."""
    for block in re.finditer(r"([^\n]*)\n\n```\w+\n(.*?)^```$", "\n".join(lines), re.MULTILINE | re.DOTALL):
        lead = LEAD.fullmatch(block[1])
        if lead is None:
            raise ValueError(f"Expected a line that says what to do with the block, found {block[1]!r}.")
        yield Step(lead[1] or lead[3], lead[2] or "", block[2])


def changed(text: str, diff: str) -> str:
    """The text after a change; raises unless the lines that it changes stand in it once."""
    old = [line[1:] for line in diff.splitlines() if line[0] != "+"]
    new = "\n".join(line[1:] for line in diff.splitlines() if line[0] != "-")
    pattern = "^" + "(.*?)".join(map(re.escape, "\n".join(old).split("…"))) + "$"
    found = list(re.finditer(pattern, text, re.MULTILINE))
    if len(found) != 1:
        raise ValueError(f"Expected {' / '.join(old)!r} once, found it {len(found)} times.")
    for there in found[0].groups():
        new = new.replace("…", there, 1)
    return text[: found[0].start()] + new + text[found[0].end() :]


def merged(one: Any, other: Any) -> Any:
    """JSON with another laid over it."""
    if not (isinstance(one, dict) and isinstance(other, dict)):
        return other
    return {**one, **{key: merged(one.get(key), value) for key, value in other.items()}}


def run(script: str, folder: Path) -> None:
    """Runs lines of shell with this Python first on the path."""
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("the commands are for a shell")
    shims = folder / ".bin"
    shims.mkdir(exist_ok=True)
    (shims / "python").unlink(missing_ok=True)
    (shims / "python").write_text(f'#!{shell}\nexec "{sys.executable}" "$@"\n', "utf-8")
    (shims / "python").chmod(0o755)
    known = {**os.environ, "PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([shell, "-e", "-c", script], cwd=folder, env=known, capture_output=True, text=True)
    assert done.returncode == 0, f"{script}\n{done.stdout[-4000:]}\n{done.stderr[-2000:]}"


def follow(step: Step, folder: Path) -> None:
    """Does what one block says."""
    path = folder / step.path
    if step.kind == NEW:
        assert not path.exists()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(step.body, "utf-8")
    elif step.kind == CHANGE:
        path.write_text(changed(path.read_text("utf-8"), step.body), "utf-8")
    elif step.kind == MERGE:
        whole = merged(json.loads(path.read_text("utf-8")), json.loads(step.body))
        path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", "utf-8")
    else:
        run(step.body, folder)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The repository without what is large, made here or hidden."""
    return shutil.copytree(ROOT, tmp_path / "pack", ignore=NOT_COPIED)


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [pytest.param(name, marks=pytest.mark.comfy) if name == LIVE else name for name in EXAMPLES]
)
def test_an_example_is_right_word_by_word(copy: Path, example: str) -> None:
    done = list(steps(sections(DOCUMENT)[example]))
    assert any("pytest" in step.body for step in done if step.kind == (RUN_LIVE if example == LIVE else RUN))
    if example == LIVE and find_comfyui() is None:
        pytest.skip(not_found_reason())
    for step in done:
        follow(step, copy)


def test_a_node_takes_five_edits_at_most() -> None:
    edited = {step.path for step in steps(sections(DOCUMENT)[LIVE]) if step.path}
    assert 1 < len(edited) <= 5


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_block_says_what_to_do_with_it(example: str) -> None:
    assert len(list(steps(sections(DOCUMENT)[example]))) >= 4


def test_a_family_from_nothing_gives_what_the_table_says() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", "\n".join(sections(DOCUMENT)["Add a family"]), re.MULTILINE)
    named = (item for kind in VideoModel.__mro__ for item in vars(kind).items())
    assert set(rows) == {name for name, value in named if is_abstract(value)}


def is_abstract(value: object) -> bool:
    """Whether a class leaves it to others; a cached property does not say so by itself."""
    return getattr(getattr(value, "func", value), "__isabstractmethod__", False)


def test_the_arrows_are_the_imports_that_are_allowed() -> None:
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    named = dict(re.findall(r"(\w+)\[([\w/]+)\]", diagram))
    chains = [re.sub(r"\[[\w/]+\]", "", line).split(" --> ") for line in diagram.splitlines() if "-->" in line]
    arrows: dict[str, set[str]] = {}
    for chain in chains:
        rooms = [named.get(name.strip(), name.strip()) for name in chain]
        for one, other in zip(rooms, rooms[1:], strict=False):
            arrows.setdefault(one, set()).add(other)
    assert {room: reached(room, arrows) for room in ALLOWED if "demo_model" not in room} == {
        room: allowed for room, allowed in ALLOWED.items() if "demo_model" not in room
    }


def reached(room: str, arrows: dict[str, set[str]]) -> set[str]:
    """The rooms that arrows lead to from one, over others too."""
    nearest = arrows.get(room, set())
    return nearest.union(*(reached(other, arrows) for other in nearest))


def test_the_way_from_a_picture_to_a_file_is_short_and_never_goes_back() -> None:
    files = re.findall(
        r"^\d+\. `([\w/]+\.py)`", "\n".join(sections(DOCUMENT)["From a picture to a file"]), re.MULTILINE
    )
    assert 1 < len(files) <= 12
    assert len(set(files)) == len(files)
    assert [file for file in files if not (ROOT / file).is_file()] == []
    assert (files[0], files[-2]) == ("nodes/conditioning.py", "nodes/save_video.py")


def test_adding_a_node_lists_every_file_that_it_touches() -> None:
    lines = sections(DOCUMENT)["Add a node"]
    rows = "\n".join(line for line in lines if line.startswith("| "))
    touched = {step.path for step in steps(lines) if step.path}
    assert touched == set(re.findall(r"`([\w/.-]+\.\w+)`", rows))


def test_every_room_has_its_row() -> None:
    first = (line.split(" | ")[0] for line in sections(DOCUMENT)["The rooms"] if line.startswith("|"))
    rows = set(re.findall(r"`(\w+)/`", "\n".join(first)))
    assert rows == {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"tests", "locales", "web", "demo_model"}


class TestChanged:
    """The examples' changes are refused where they do not fit."""

    def test_lines_come_and_go_and_dots_stand_for_what_is_there(self) -> None:
        text = "import a\n\nx = (one, two, last)\n"
        assert changed(text, " import a\n+import b\n") == "import a\nimport b\n\nx = (one, two, last)\n"
        assert changed(text, "-x = (…, last)\n+x = (…, new, last)\n") == "import a\n\nx = (one, two, new, last)\n"

    @pytest.mark.parametrize("diff", ["-import c\n+import d\n", "-y = …\n+z = …\n", "-…port a\n+b\n"])
    def test_what_is_not_there_once_is_refused(self, diff: str) -> None:
        with pytest.raises(ValueError, match="once"):
            changed("import a\nimport a\nx\n", diff)
