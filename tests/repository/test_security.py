"""SECURITY.md promises what the code does."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("nodes", "runtime", "remote", "pipeline", "engine_builder", "common", "cli", "benchmarks", "demo_model")
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
READS_CODE = {"pickle", "cPickle", "dill", "shelve", "marshal"}
RUNS_TEXT = {"eval", "exec"}


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def dangers(source: str) -> list[str]:
    """What reads code out of data, runs text, or hands a line to a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in READS_CODE]
        elif isinstance(node, ast.ImportFrom) and node.module in READS_CODE and not node.level:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {key.arg: ast.unparse(key.value) for key in node.keywords}
            unsafe_load = name == "torch.load" and words.get("weights_only") != "True"
            if name in RUNS_TEXT or name == "os.system" or words.get("shell") == "True" or unsafe_load:
                found.append(name)
    return found


def test_no_file_reads_code_out_of_data_or_uses_a_shell() -> None:
    assert len(files()) > 150
    found = {str(path.relative_to(ROOT)): dangers(path.read_text("utf-8")) for path in files()}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "eval(x)",
        "import os\nos.system(x)",
        "run(x, shell=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
    ],
)
def test_each_of_them_would_be_found(source: str) -> None:
    assert dangers(source) != []


def test_files_and_folders_that_it_names_are_ours() -> None:
    named = re.findall(r"`(nodes/[\w/.]+)`", TEXT)
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []
    store, secret = (
        (ROOT / "engine_builder" / "store" / f"{name}.py").read_text("utf-8") for name in ("store", "secret")
    )
    assert '".secret"' in store
    assert "0o600" in secret
