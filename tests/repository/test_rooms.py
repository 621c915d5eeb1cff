"""Imports go one way, and only nodes/host knows ComfyUI."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "common": set(),
    "engine_builder": {"common"},
    "pipeline": {"common"},
    "runtime": {"pipeline", "engine_builder", "common"},
    "nodes": {"runtime", "pipeline", "engine_builder", "common"},
    "remote/comfyui": {"common"},
    "remote/batch": {"remote/comfyui", "common"},
    "remote/fleet": {"remote/batch", "remote/comfyui", "common"},
    "benchmarks": {
        "remote/fleet",
        "remote/batch",
        "remote/comfyui",
        "runtime",
        "pipeline",
        "engine_builder",
        "common",
        "demo_model/training",
    },
    "cli": {
        "benchmarks",
        "remote/batch",
        "remote/fleet",
        "remote/comfyui",
        "runtime",
        "pipeline",
        "engine_builder",
        "common",
        "demo_model/training",
    },
    "demo_model/training": {"pipeline"},
}
"""What each room may import beside itself."""
COMFY = {"comfy", "comfy_api", "folder_paths", "nodes", "server", "execution", "latent_preview", "comfy_execution"}


@cache
def modules() -> dict[str, Path]:
    """Every file of the rooms by the dotted name of its module."""
    files = [path for room in ALLOWED for path in sorted((ROOT / room).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def room_of(name: str) -> str | None:
    """The room that a module stands in; None where that is none of them."""
    path = name.replace(".", "/")
    return next((room for room in ALLOWED if path == room or path.startswith(f"{room}/")), None)


def imported(path: Path) -> set[str]:
    """The modules of the pack that a file imports, wherever it does."""
    found: set[str] = set()
    parts = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = ".".join([*parts[: len(parts) - node.level], *filter(None, [node.module])])
            names = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name if name in modules() else base for name in names}
    return found


def absolute(path: Path) -> set[str]:
    """The packages outside the pack that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text("utf-8"))))
    froms = {(node.module or "").split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom) and not node.level}
    return froms | {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def test_imports_go_one_way() -> None:
    assert len(modules()) > 150
    wrong = [
        f"{name} imports {target}"
        for name, path in modules().items()
        for target in sorted(imported(path))
        if (room := room_of(name)) != (other := room_of(target)) and other not in ALLOWED[room or ""]
    ]
    assert wrong == []


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Modules that import each other, by whatever way round."""
    reached = {name: _reached(name, imports) for name in imports}
    found = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in imports
        if name in reached[name]
    }
    return sorted(map(list, found))


def _reached(name: str, imports: dict[str, set[str]]) -> set[str]:
    """What a module imports, and what that imports, and so on."""
    reached: set[str] = set()
    todo = [name]
    while todo:
        new = imports.get(todo.pop(), set()) - reached
        reached |= new
        todo += new
    return reached


def test_no_modules_import_each_other() -> None:
    """By way of others neither, nor in a function."""
    assert circles({name: imported(path) for name, path in modules().items()}) == []


def test_a_circle_would_be_found() -> None:
    imports = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"a"}}
    assert circles(imports) == [["a", "b", "c"]]


def test_only_the_host_knows_comfyui() -> None:
    wrong = []
    for name, path in modules().items():
        known = {"comfy_api"} if room_of(name) == "nodes" else set()
        known = COMFY if name.startswith("nodes.host.") else known
        wrong += [f"{name} imports {package}" for package in sorted(absolute(path) & COMFY - known)]
    assert wrong == []


def test_only_one_file_knows_ray() -> None:
    users = [name for name, path in modules().items() if "ray" in absolute(path)]
    assert users == ["remote.fleet.ray_crew"]
