"""Draws the pack's pictures: where each node stands, icon and banner.

    python docs/make_pictures.py

A picture keeps the data that it was drawn from in its own metadata, so that a test can tell when it is old.
"""

from __future__ import annotations

import ast
import json
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


# What is drawn


def _modules(room: str) -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted((ROOT / room).rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text("utf-8"))


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
    names, chained = nodes(), chain()

    def place(name: str) -> tuple[Any, Callable[[], Image.Image]]:
        others = {other: names[other] for other in [*chained, *FEEDS, name]}
        return {"nodes": others, "chain": chained, "lit": name}, lambda: draw_place(others, chained, name)

    return {
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
