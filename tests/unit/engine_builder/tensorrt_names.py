"""Which names of TensorRT's API the backend uses, and in which libraries' bindings they stand.

The bindings of the full TensorRT cannot be imported without its libraries, but they can be read: every
name that Python sees is a text in the binding's binary. Linkers keep a text that ends another one only
once, so that a name counts as present when a text ends with it: a name that is absent is absent for
certain; one that is present may belong to another class.

    python tests/unit/engine_builder/tensorrt_names.py WHEEL... > tests/unit/engine_builder/tensorrt_names.json
"""

from __future__ import annotations

import ast
import json
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

BACKEND = Path(__file__).resolve().parents[3] / "engine_builder" / "backends" / "tensorrt"
ROOTS = {"trt", "builder", "network", "parser", "config", "profile", "runtime", "engine", "context", "runtime_cache"}
"""Variables of the backend that hold TensorRT's module or one of its objects."""
HOLDERS = {"module", "_engine", "_context"}
"""Attributes of the backend's own objects that do."""
CONTROLS = {"create_execution_context_without_device_memory", "device_memory_size", "FP16", "EXPLICIT_BATCH"}
"""Names that TensorRT 11 removed: they show that the method tells absence."""
_WHEEL = re.compile(r"(tensorrt(?:_rtx)?)_cu\d+_bindings-([\d.]+)-")


def used_names(path: Path) -> set[str]:
    """Every attribute that a file of the backend takes from TensorRT, and every method that it overrides."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Attribute):
            found.update(_from_tensorrt(node))
        elif isinstance(node, ast.ClassDef) and any(set(_chain(base)) & ROOTS for base in node.bases):
            found.update(item.name for item in node.body if isinstance(item, ast.FunctionDef))
    return {name for name in found if not name.startswith("__")}


def backend_files() -> list[Path]:
    """The files of the TensorRT backend."""
    return sorted(path for path in BACKEND.glob("*.py") if path.name != "__init__.py")


def names_in(wheel: Path) -> tuple[str, bytes]:
    """The library and version of a wheel of bindings, and its binary."""
    match = _WHEEL.match(wheel.name)
    if match is None:
        raise ValueError(f"expected a wheel of TensorRT's bindings, found {wheel.name}")
    with zipfile.ZipFile(wheel) as archive:
        (binary,) = (name for name in archive.namelist() if name.endswith((".so", ".pyd")))
        return f"{match[1]} {match[2]}", archive.read(binary)


def _from_tensorrt(node: ast.Attribute) -> Iterator[str]:
    """The names of a chain such as `self._engine.num_io_tensors` that come after its first holder."""
    chain = _chain(node)
    start = 0 if chain[0] in ROOTS else next((n for n, name in enumerate(chain) if n and name in HOLDERS), None)
    if start is not None:
        yield from chain[start + 1 :]


def _chain(node: ast.AST) -> list[str]:
    """`a.b(c).d` as a, b, d; something else than a name at the root is an empty one."""
    if isinstance(node, ast.Attribute):
        return [*_chain(node.value), node.attr]
    if isinstance(node, ast.Call):
        return _chain(node.func)
    return [node.id if isinstance(node, ast.Name) else ""]


def main(wheels: list[str]) -> None:
    """Writes the table of all names that the backend uses, and the controls: the libraries that have each."""
    binaries = dict(names_in(Path(wheel)) for wheel in wheels)
    names = sorted(CONTROLS.union(*map(used_names, backend_files())))
    table = {
        name: [library for library, binary in sorted(binaries.items()) if name.encode() + b"\0" in binary]
        for name in names
    }
    json.dump({"libraries": sorted(binaries), "names": table}, sys.stdout, indent=1)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main(sys.argv[1:])
