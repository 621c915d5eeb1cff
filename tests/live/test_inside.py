"""What ComfyUI and the pack do to each other in one process: memory, on a pretended GPU, folders, and LoRAs."""

import ast
import json
import subprocess
from pathlib import Path

import pytest

from i2v_tensorrt.remote.comfyui.server import ComfyHost
from i2v_tensorrt.tests.live.inside import CASE, OUTCOMES, SKIPPED

HERE = Path(__file__).resolve().parent
FILES = sorted(HERE.glob("inside_*.py"))
EVERYWHERE = {"inside_folders.py", "inside_saving.py"}
"""Files that need no more of ComfyUI than the oldest one has; the others pretend a GPU with its memory manager."""


def cases() -> list[str]:
    """The names of all cases, read without running what needs ComfyUI."""
    bodies = (ast.parse(path.read_text("utf-8")).body for path in FILES)
    return [each.name for body in bodies for each in body if isinstance(each, ast.FunctionDef) and CASE in each.name]


@pytest.fixture(scope="module")
def outcomes(host: ComfyHost, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str | None]:
    """What each case raised, by its name."""
    streams_weights = (host.directory / "comfy" / "memory_management.py").is_file()
    files = [path for path in FILES if streams_weights or path.name in EVERYWHERE]
    folder = tmp_path_factory.mktemp("inside")
    command = [host.python, HERE / "inside.py", host.directory, folder, *files]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / OUTCOMES).read_text("utf-8"))


@pytest.mark.parametrize("name", cases())
def test_case(outcomes: dict[str, str | None], name: str) -> None:
    if name not in outcomes:
        pytest.skip("this ComfyUI brings no weights in as they are used")
    found = outcomes[name]
    if found is not None and found.startswith(SKIPPED):
        pytest.skip(found.removeprefix(SKIPPED))
    assert found is None, found
