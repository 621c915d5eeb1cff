"""The import direction: pipeline and engine_builder never meet, and only nodes/host*.py knows ComfyUI."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("pipeline", "engine_builder", "jobs", "nodes", "bootstrap", "benchmarks", "training")
LEAVES = {f"engine_builder.{name}" for name in ("spec", "errors", "memory", "source")}
ALLOWED = {
    "engine_builder": {"engine_builder"},
    "pipeline": {"pipeline"},
    "jobs": {"jobs", "pipeline", "engine_builder"},
    "benchmarks": {"benchmarks", "jobs", "pipeline", "engine_builder"},
    "bootstrap": {"bootstrap", "jobs", "benchmarks"},
    "nodes": {"nodes", "jobs", "pipeline", "engine_builder"},
    "training": {"training"},
}
COMFY = {"comfy", "comfy_api", "folder_paths", "nodes", "server", "execution", "latent_preview", "comfy_execution"}
HOST = {"host.py", "host_idle.py", "host_model.py", "host_network.py", "host_patcher.py"}
HEAVY = {"torch", "diffusers", "transformers", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "av"}


def files() -> list[Path]:
    return [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path: Path) -> set[str]:
    """Absolute dotted names that the file imports, with relative ones resolved from the root."""
    names: set[str] = set()
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(parts[: len(parts) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            if not node.level:
                names.add(module)
            else:
                names |= {
                    module
                    if (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
                    else f"{module}.{alias.name}"
                    for alias in node.names
                }
    return names


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        target = name.split(".")[0]
        if target in ROOMS and name not in LEAVES:
            assert target in ALLOWED[room], f"{path} imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_only_nodes_knows_comfyui(path: Path) -> None:
    text = ast.parse(path.read_text("utf-8"))
    absolute = {
        (node.module or "").split(".")[0]
        for node in ast.walk(text)
        if isinstance(node, ast.ImportFrom) and not node.level
    } | {alias.name.split(".")[0] for node in ast.walk(text) if isinstance(node, ast.Import) for alias in node.names}
    found = absolute & COMFY
    room = path.relative_to(ROOT).parts[0]
    if room != "nodes":
        assert not found
    elif path.name not in HOST:
        assert found <= {"comfy_api"}, f"{path} must ask host.py instead of importing {found}"
