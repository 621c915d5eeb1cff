"""No file, class or function is too long to be read at once; those that are may only become shorter."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (
    "benchmarks",
    "cli",
    "common",
    "demo_model",
    "docs",
    "engine_builder",
    "nodes",
    "pipeline",
    "remote",
    "runtime",
    "tests",
    "workflows",
)
MOST_LINES, MOST_FUNCTION_LINES, MOST_METHODS = 400, 80, 15
SCHEMA = "define_schema"
"""A node's inputs and outputs are data, however many they are."""

LONG_FILES: dict[str, int] = {}
"""Files that are longer, and their lines."""
LARGE_CLASSES: dict[str, int] = {}
"""Classes that have more methods, and how many."""

Function = (ast.FunctionDef, ast.AsyncFunctionDef)


def sources() -> dict[str, str]:
    """Every file of Python in the repository, by its path in it."""
    paths = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in sorted(paths)}


def file_lines(files: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """The lines of each file."""
    for path, source in files.items():
        yield path, len(source.splitlines())


def function_lines(files: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """The lines of each function, schemas aside."""
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, Function) and node.name != SCHEMA:
                yield f"{path}: {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def class_methods(files: Mapping[str, str]) -> Iterator[tuple[str, int]]:
    """How many methods each class has, those that it inherits aside."""
    for path, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                yield f"{path}: {node.name}", sum(isinstance(each, Function) for each in node.body)


def over(counts: Iterator[tuple[str, int]], most: int) -> dict[str, int]:
    """Those that are above the limit."""
    return {name: count for name, count in counts if count > most}


def assert_no_more_than(known: Mapping[str, int], found: Mapping[str, int]) -> None:
    """What is over a limit was so before, and no less; what no longer is leaves the list."""
    assert {name: count for name, count in found.items() if count > known.get(name, 0)} == {}
    assert sorted(known) == sorted(found)


def test_files_are_short() -> None:
    files = sources()
    assert len(files) > 300
    assert_no_more_than(LONG_FILES, over(file_lines(files), MOST_LINES))


def test_functions_are_short() -> None:
    assert_no_more_than({}, over(function_lines(sources()), MOST_FUNCTION_LINES))


def test_classes_have_few_methods() -> None:
    assert_no_more_than(LARGE_CLASSES, over(class_methods(sources()), MOST_METHODS))


def test_what_is_too_long_would_be_found() -> None:
    body = "        pass\n" * 3
    source = f"class Large:\n    def one(self):\n{body}    async def two(self):\n{body}    def {SCHEMA}():\n{body * 2}"
    files = {"a.py": source}
    assert over(file_lines(files), 15) == {"a.py": 16} and over(file_lines(files), 16) == {}
    assert over(class_methods(files), 2) == {"a.py: Large": 3} and over(class_methods(files), 3) == {}
    assert over(function_lines(files), 3) == {"a.py: one": 4, "a.py: two": 4} and over(function_lines(files), 4) == {}
