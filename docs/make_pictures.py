"""Draws the pack's pictures: the architecture read off the code, where each node stands, icon and banner.

    python docs/make_pictures.py

A picture keeps the data that it was drawn from in its own metadata, so that a test can tell when it is old.
"""

from __future__ import annotations

import ast
import json
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

ROOT = Path(__file__).resolve().parent.parent
KEY = "drawn-from"
"""The metadata entry that holds the data as JSON."""
SCALE = 2
"""Everything is drawn this much larger, for smooth edges."""
INK, PAPER, MUTED, LINE = "#1d2733", "#ffffff", "#5b6b7c", "#8496a9"
BLUE, BROWN, PURPLE, GREEN, GREY = "#dde6f7", "#f3e4da", "#ecdff5", "#dcefdf", "#edf0f3"


# What is drawn


def _modules(room: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))


def _imported(path: Path, module: ast.Module) -> Iterator[str]:
    """Dotted names below the root that a module imports, with those that it names for a later import."""
    for node in ast.walk(module):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.with_suffix("").parts[: len(path.parts) - node.level]
            yield ".".join([*base, node.module] if node.module else base)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if later := re.fullmatch(r"\.\.(\w+(?:\.\w+)+)", node.value):
                yield later[1]


def _named(folder: str, attribute: str) -> list[str]:
    """The text that each class in a folder gives its attribute."""
    found = [
        line.value.value
        for _, module in _modules(folder)
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
        for line in node.body
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name) and line.target.id == attribute
        if isinstance(line.value, ast.Constant)
    ]
    return sorted(map(str, found))


def _sentence(room: str) -> str:
    """What a room says of itself."""
    text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text("utf-8"))) or ""
    return text.partition("\n")[0]


def architecture() -> dict[str, Any]:
    """Rooms, the imports between them, the leaves that the pipeline may import, and what each registry holds."""
    rooms = sorted(path.parent.name for path in ROOT.glob("*/__init__.py"))
    targets = {room: {name for p, m in _modules(room) for name in _imported(p, m)} for room in rooms}
    leaves = {name for name in targets["pipeline"] if name.startswith("engine_builder")}
    edges = {(room, name.split(".")[0]) for room, names in targets.items() for name in names - leaves}
    return {
        "rooms": {room: _sentence(room) for room in rooms},
        "imports": [[a, b] for a, b in sorted(edges) if a != b and b in rooms],
        "leaves": sorted(leaves),
        "backends": _named("engine_builder/backends", "name"),
        "families": _named("pipeline/models", "family"),
        "nodes": sorted(nodes().values()),
    }


def chain() -> list[str]:
    """The ids of our nodes in the first workflow, in the order of their numbers, which is that of a run."""
    prompt = json.loads((ROOT / "workflows" / "api" / "image_to_video.json").read_text("utf-8"))
    kinds = [prompt[number]["class_type"] for number in sorted(prompt, key=int)]
    return [kind for kind in kinds if kind.startswith("I2VTRT_")]


def nodes() -> dict[str, str]:
    """Display names of the nodes by their id."""
    found: dict[str, str] = {}
    for _, module in _modules("nodes"):
        for node in ast.walk(module):
            if isinstance(node, ast.Call):
                words = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
                if "node_id" in words:
                    found[str(words["node_id"])] = str(words["display_name"])
    return dict(sorted(found.items()))


def direct(edges: list[list[str]]) -> list[tuple[str, str]]:
    """The imports that no longer way round already stands for."""
    pairs = {(a, b) for a, b in edges}
    further = set(pairs)
    for _ in pairs:
        further |= {(a, d) for a, b in further for c, d in further if b == c}
    rooms = {room for pair in pairs for room in pair}
    return sorted((a, b) for a, b in pairs if not any((a, c) in further and (c, b) in further for c in rooms))


# How it is drawn


@dataclass(frozen=True)
class Box:
    """A rectangle in the picture's own units."""

    left: int
    top: int
    width: int
    height: int

    @property
    def whole(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom."""
        return self.left, self.top, self.left + self.width, self.top + self.height


class Canvas:
    """A picture that is drawn larger than it is saved."""

    def __init__(self, width: int, height: int, colour: str = PAPER) -> None:
        self.size = (width, height)
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), colour)
        self.draw = ImageDraw.Draw(self.image)

    def box(self, box: Box, fill: str, outline: str = LINE, radius: int = 12) -> None:
        corners = [value * SCALE for value in box.whole]
        self.draw.rounded_rectangle(corners, radius * SCALE, fill, outline, 2 * SCALE)

    def text(self, x: float, y: float, text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        self.draw.text((x * SCALE, y * SCALE), text, colour, ImageFont.load_default(size * SCALE), anchor)

    def paragraph(self, x: float, y: float, text: str, size: int, columns: int, colour: str = MUTED) -> float:
        """Wraps the text and returns where the next one starts."""
        for line in textwrap.wrap(text, columns):
            self.text(x, y, line, size, colour)
            y += size * 1.35
        return y

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = MUTED) -> None:
        (x0, y0), (x1, y1) = ((x * SCALE, y * SCALE) for x, y in (start, end))
        length = max(((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5, 1)
        dx, dy, head = (x1 - x0) / length, (y1 - y0) / length, 12 * SCALE
        back = (x1 - dx * head, y1 - dy * head)
        self.draw.line([(x0, y0), back], colour, 3 * SCALE)
        across = (-dy * head * 0.55, dx * head * 0.55)
        wings = [(back[0] + sign * across[0], back[1] + sign * across[1]) for sign in (1, -1)]
        self.draw.polygon([(x1, y1), *wings], colour)

    def finished(self) -> Image.Image:
        """The picture in its own size."""
        return self.image.resize(self.size, Image.Resampling.LANCZOS)


ROOMS: dict[str, tuple[Box, str]] = {
    "nodes": (Box(40, 90, 480, 220), PURPLE),
    "benchmarks": (Box(600, 90, 340, 220), BROWN),
    "bootstrap": (Box(1020, 90, 340, 220), GREY),
    "jobs": (Box(340, 365, 560, 145), GREEN),
    "training": (Box(1020, 365, 340, 145), GREY),
    "pipeline": (Box(40, 560, 560, 180), BLUE),
    "engine_builder": (Box(720, 560, 640, 180), BLUE),
}
"""Where each room stands; who imports stands above what it imports."""
TESTS = Box(40, 775, 1320, 50)
TESTS_SENTENCE = "tests/   mirror the rooms; tests/test_rooms.py holds imports to the arrows and what lies behind them"


def draw_architecture(data: dict[str, Any]) -> Image.Image:
    """One page: the rooms, what they are for, what they hold, and which may import which."""
    canvas = Canvas(1400, 850)
    canvas.text(40, 34, "I2V TensorRT: its rooms, and who may import whom", 26)
    held = {
        "nodes": f"{len(data['nodes'])} nodes: {', '.join(name.removeprefix('I2V ') for name in data['nodes'])}",
        "pipeline": f"families: {', '.join(data['families'])}",
        "engine_builder": f"backends: {', '.join(data['backends'])}",
    }
    for room, sentence in data["rooms"].items():
        box, fill = ROOMS[room]
        canvas.box(box, fill)
        canvas.text(box.left + 20, box.top + 16, f"{room}/", 24)
        columns = (box.width - 40) // 8
        y = canvas.paragraph(box.left + 20, box.top + 54, sentence.replace("`", ""), 17, columns)
        canvas.paragraph(box.left + 20, y + 8, held.get(room, ""), 17, columns, INK)
    for importer, room in direct(data["imports"]):
        canvas.arrow(*_between(ROOMS[importer][0], ROOMS[room][0]))
    pipeline, engines = ROOMS["pipeline"][0], ROOMS["engine_builder"][0]
    start, end = _between(pipeline, engines)
    canvas.arrow(start, end, LINE)
    canvas.text((start[0] + end[0]) / 2, start[1] - 34, "leaves", 16, MUTED, "mm")
    canvas.text((start[0] + end[0]) / 2, start[1] - 16, "only", 16, MUTED, "mm")
    leaves = ", ".join(name.partition(".")[2] + ".py" for name in data["leaves"])
    canvas.paragraph(engines.left + 20, engines.top + 142, f"leaves that pipeline/ may import: {leaves}", 16, 80)
    canvas.box(TESTS, GREY)
    canvas.text(TESTS.left + 20, TESTS.top + 25, TESTS_SENTENCE, 18, INK, "lm")
    return canvas.finished()


def _between(start: Box, end: Box) -> tuple[tuple[float, float], tuple[float, float]]:
    """An arrow from one box to another: straight down where they overlap, level where they stand side by side."""
    if start.top == end.top:
        y = start.top + start.height / 2
        if start.left < end.left:
            return (start.left + start.width, y), (end.left, y)
        return (start.left, y), (end.left + end.width, y)
    if start.top > end.top:
        there, back = _between(end, start)
        return back, there
    left, right = max(start.left, end.left), min(start.left + start.width, end.left + end.width)
    x = (left + right) / 2
    return (x, start.top + start.height), (x, end.top)


FEEDS = {"I2VTRT_EngineBuilder": "I2VTRT_EngineLoader"}
"""Nodes outside the chain, and the one that they work for."""
FED = {
    "I2VTRT_Benchmark": "I2VTRT_ModelLoader",
    "I2VTRT_CompareVideos": "I2VTRT_VAEDecode",
    "I2VTRT_LoRA": "I2VTRT_ModelLoader",
}
"""Nodes outside the chain, and the one that they take something from."""
COLUMNS, CELL = 3, Box(14, 14, 112, 50)


def cell(row: int, column: int) -> Box:
    """A place in the grid of nodes."""
    step = CELL.left + 6
    return Box(CELL.left + column * (CELL.width + step), CELL.top + row * (CELL.height + step), CELL.width, CELL.height)


def draw_place(names: dict[str, str], chained: list[str], current: str) -> Image.Image:
    """The chain of nodes with one of them lit, in rows of three to and fro: the page's side panel is narrow."""
    rows = -(-len(chained) // COLUMNS) + 1
    places: dict[str, Box] = {}
    for n, name in enumerate(chained):
        row, column = divmod(n, COLUMNS)
        places[name] = cell(row + 1, COLUMNS - 1 - column if row % 2 else column)
    for name in names:
        if name in FEEDS:
            places[name] = Box(places[FEEDS[name]].left, CELL.top, CELL.width, CELL.height)
    if current in FED:
        source = places[FED[current]]
        below = source.top > cell(1, 0).top
        places[current] = replace(source, top=cell(rows if below else 0, 0).top)
    places.setdefault(current, cell(0, 0))
    corner = cell(rows + (places[current].top == cell(rows, 0).top), COLUMNS)
    canvas = Canvas(corner.left - 6, corner.top - 6, "#202226")
    arrows = [*zip(chained, chained[1:], strict=False), *(pair for pair in FEEDS.items() if pair[0] in places)]
    arrows += [(FED[current], current)] if current in FED else []
    for one, other in arrows:
        canvas.arrow(*_between(places[one], places[other]), "#9aa4b0")
    for name, box in places.items():
        _draw_node(canvas, box, names[name].removeprefix("I2V "), name == current)
    return canvas.finished()


def _draw_node(canvas: Canvas, box: Box, name: str, lit: bool) -> None:
    canvas.box(box, "#f5c542" if lit else "#3a3f47", "#ffe49a" if lit else "#5a616b", 8)
    lines = textwrap.wrap(name, 13)
    for n, line in enumerate(lines):
        y = box.top + box.height / 2 + (n - (len(lines) - 1) / 2) * 17
        canvas.text(box.left + box.width / 2, y, line, 15, "#1b1b1b" if lit else "#e3e6ea", "mm")


NIGHT, SUN = "#141b2d", "#ffb347"
FRAMES = ["#2b4a8b", "#3f6fc0", "#5b9be6"]


def draw_icon(side: int = 400) -> Image.Image:
    """A picture that becomes frames, with the sign for playing on the last."""
    canvas, unit = Canvas(side, side, NIGHT), side / 400
    for n, colour in enumerate(FRAMES):
        left, top = round((50 + 45 * n) * unit), round((50 + 45 * n) * unit)
        canvas.box(Box(left, top, round(210 * unit), round(210 * unit)), colour, NIGHT, round(24 * unit))
    centre = [(218, 190), (218, 300), (308, 245)]
    canvas.draw.polygon([(x * unit * SCALE, y * unit * SCALE) for x, y in centre], SUN)
    return canvas.finished()


def draw_banner() -> Image.Image:
    """21:9: the pack's name, and the bundled picture as frames of a camera that moves."""
    canvas = Canvas(1680, 720, NIGHT)
    canvas.image.paste(draw_icon(300 * SCALE), (90 * SCALE, 60 * SCALE))
    canvas.text(430, 130, "I2V TensorRT", 110, "#ffffff")
    canvas.text(434, 262, "A picture and a prompt become a video in ComfyUI", 40, "#b9c7e6")
    with Image.open(ROOT / "workflows" / "pictures" / "lake.png") as lake:
        for n in range(6):
            part = lake.convert("RGB").crop((n * 32, 96, n * 32 + 340, 436))
            canvas.image.paste(part.resize((230 * SCALE, 230 * SCALE)), ((100 + 252 * n) * SCALE, 420 * SCALE))
    return canvas.finished()


def pictures() -> dict[str, tuple[Any, Callable[[], Image.Image]]]:
    """Each picture's path below the root, the data that it shows, and how it is drawn."""
    whole, names, chained = architecture(), nodes(), chain()

    def place(name: str) -> tuple[Any, Callable[[], Image.Image]]:
        others = {other: names[other] for other in [*chained, *FEEDS, name]}
        return {"nodes": others, "chain": chained, "lit": name}, lambda: draw_place(others, chained, name)

    return {
        "docs/architecture.png": (whole, lambda: draw_architecture(whole)),
        "docs/icon.png": ({"frames": FRAMES}, draw_icon),
        "docs/banner.png": ({"frames": FRAMES}, draw_banner),
        **{f"web/docs/images/{name}.png": place(name) for name in names},
    }


def main(root: Path = ROOT) -> None:
    """Writes every picture below the root."""
    for name, (data, draw) in pictures().items():
        kept = PngImagePlugin.PngInfo()
        kept.add_text(KEY, json.dumps(data, sort_keys=True))
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw().quantize(256).save(root / name, pnginfo=kept, optimize=True)


if __name__ == "__main__":
    main()
