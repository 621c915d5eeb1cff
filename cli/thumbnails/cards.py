"""A card for each workflow: its titles, whether it needs a download, and how its picture is drawn."""

from __future__ import annotations

from dataclasses import dataclass

from PIL.Image import Image

from ...common import workflow_names as names
from . import bundled, downloads
from .bundled import ART, Pictures
from .canvas import AMBER, GREEN, INK, PANEL, SIDE, WHITE, Canvas, width_of
from .downloads import Draw

READY = ("runs as installed", "无需下载")
DOWNLOAD = ("needs a download", "需下载")
ROOM = SIDE - 24
"""The width of a line of text."""


@dataclass(frozen=True)
class Card:
    """A workflow's titles on its picture, and what is drawn above them."""

    english: str
    chinese: str
    draw: Draw
    is_ready: bool = False


def _model(colour: str, name: str, second: str, size: str, chinese: str) -> Card:
    return Card(f"{name} {second}".strip(), chinese, downloads.model(colour, name, second, size))


CARDS = {
    names.QUICK_START: Card("First video", "第一段视频", bundled.first_video, True),
    names.TWO_PROMPTS: Card("Two prompts", "一张图，两个提示词", bundled.two_prompts, True),
    names.SMOOTHER: Card("Smoother motion", "动作更流畅", bundled.smoother, True),
    names.TWO_PHASES: Card("Larger: two phases", "先小后大，分两步", bundled.two_phases, True),
    names.UPSCALED: Card("Larger: upscale model", "用放大模型放大", downloads.upscaled),
    names.ONNX: Card("ONNX on every frame", "逐帧运行 ONNX 网络", downloads.onnx),
    names.SVD: Card(
        "Stable Video Diffusion", "图生视频", downloads.model("#3c2157", "SVD", "", "1024 × 576, 25 frames")
    ),
    names.WAN21: _model("#123a63", "Wan 2.1", "14B", "832 × 480, 81 frames", "万相 2.1，14B"),
    names.WAN22: _model("#0f4a4a", "Wan 2.2", "A14B", "832 × 480, 81 frames", "万相 2.2，A14B"),
    names.WAN22_TI2V: _model("#4a1f33", "Wan 2.2", "TI2V-5B", "1280 × 704, 121 frames", "万相 2.2，TI2V-5B"),
    names.DYNAMICRAFTER: Card("From one picture", "从一张图片开始", downloads.from_one_picture),
    names.DYNAMICRAFTER_BETWEEN: Card("Between two pictures", "两张图片之间", downloads.between_pictures),
    names.DYNAMICRAFTER_LOOP: Card("Loop", "循环视频", downloads.loop),
    names.MIXED: Card("Mixed with core nodes", "与 ComfyUI 自带节点混用", bundled.mixed, True),
    names.CORE_MODEL: Card("Core model, engines", "自带模型通过引擎运行", downloads.core_model),
    names.LOW_MEMORY: Card("Low memory", "内存不足时", bundled.low_memory, True),
    names.COMPARE: Card("Compare", "对比 eager 与引擎", bundled.compare, True),
    names.PREBUILD: Card("Prebuild engines", "提前编译引擎", bundled.prebuild, True),
}
"""All workflows, in the order of the page."""


def drawn(name: str, pictures: Pictures) -> Image:
    """The square picture of a workflow, SIDE by SIDE."""
    card = CARDS[name]
    canvas = Canvas(PANEL)
    card.draw(canvas, pictures)
    canvas.box((0, ART, SIDE, SIDE), PANEL)
    _fitted(canvas, 344, card.english, 38)
    _fitted(canvas, 390, card.chinese, 34)
    canvas.box((0, 418, SIDE, SIDE), GREEN if card.is_ready else AMBER)
    colour = WHITE if card.is_ready else INK
    _fitted(canvas, 449, "  ·  ".join(READY if card.is_ready else DOWNLOAD), 31, colour)
    return canvas.finished()


def _fitted(canvas: Canvas, middle: float, words: str, size: float, colour: str = WHITE) -> None:
    """A line of text in the middle, smaller where it would be too wide."""
    size *= min(1.0, ROOM / width_of(words, size))
    canvas.words((SIDE / 2, middle), words, size, colour)
