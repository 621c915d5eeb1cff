"""Pictures of the workflows whose network has to be downloaded: what they take and the form of what they make.

Nothing here looks like the result of a network that has not run: its frames stay empty.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import ImageOps
from PIL.Image import Image

from ...common import workflow_names as names
from .bundled import ART, GREY, PURPLE, Pictures, bubble, film
from .canvas import AMBER, INK, SIDE, SKY, WHITE, Canvas

Draw = Callable[[Canvas, Pictures], None]


def model(colour: str, name: str, second: str, size: str) -> Draw:
    """A picture and the frames after it, with a model's name, and the size of a usual clip of it."""

    def draw(canvas: Canvas, pictures: Pictures) -> None:
        canvas.box((0, 0, SIDE, ART), colour)
        canvas.words((SIDE / 2, 100 if second else 136), name, 66 if second else 96)
        if second:
            canvas.words((SIDE / 2, 168), second, 64, AMBER)
        canvas.words((SIDE - 16, 36), size, 21, WHITE, "rm")
        film(canvas, 214, [pictures.lake, None, None, None, None])
        canvas.arrow([(112, 265), (440, 265)], AMBER, 8)

    return draw


def from_one_picture(canvas: Canvas, pictures: Pictures) -> None:
    """One picture, and the frames that follow it."""
    _crafter(canvas, "16 frames")
    _row(canvas, pictures.lake, None)
    canvas.arrow([(182, 194), (274, 194)], AMBER, 13)
    canvas.play((393, 194), 42)


def between_pictures(canvas: Canvas, pictures: Pictures) -> None:
    """Two pictures, and the frames from one to the other."""
    _crafter(canvas, "A → B")
    _row(canvas, pictures.lake, ImageOps.mirror(pictures.lake))
    for number in range(3):
        left = 186 + number * 38
        canvas.box((left, 150, left + 32, 238), "#3a4157", WHITE, 5, 2)
    canvas.arrow([(180, 268), (284, 268)], AMBER, 9)
    bubble(canvas, (93, 270), "A", WHITE, INK, 28)
    bubble(canvas, (387, 270), "B", WHITE, INK, 28)


def loop(canvas: Canvas, pictures: Pictures) -> None:
    """One picture in the middle of a circle that comes back to it."""
    _crafter(canvas, "")
    centre = (SIDE / 2, 196)
    canvas.arc(centre, 116, (-60, 218), AMBER, 17)
    canvas.shape([(179, 99), (132, 111), (179, 149)], AMBER)
    canvas.picture((168, 124, 312, 268), pictures.lake, 72, WHITE, 5)
    canvas.words((66, 262), "A", 50)
    canvas.words((414, 262), "A", 50)


def upscaled(canvas: Canvas, pictures: Pictures) -> None:
    """The clip's frame, and the room that four times its edge takes."""
    canvas.box((0, 0, SIDE, ART), "#0f2b33")
    canvas.dashed((150, 58, 468, 302), SKY, 5, 15)
    canvas.arrow([(144, 178), (196, 126)], SKY, 12)
    canvas.picture((20, 182, 140, 302), pictures.frame(names.QUICK_START, 1), 8, WHITE, 4)
    canvas.words((334, 186), "× 4", 112)


def onnx(canvas: Canvas, pictures: Pictures) -> None:
    """A frame, half as the clip has it and half as a small network draws it."""
    plain, drawn = (pictures.frame(name, 0.2) for name in (names.QUICK_START, names.ONNX))
    middle = SIDE / 2
    canvas.picture((0, 0, middle, ART), _half(plain, left=True))
    canvas.picture((middle, 0, SIDE, ART), _half(drawn, left=False))
    canvas.arrow([(middle - 62, 200), (middle + 46, 200)], AMBER, 13)
    bubble(canvas, (middle, 272), "ONNX", AMBER, INK, 38)


def core_model(canvas: Canvas, pictures: Pictures) -> None:
    """The core's own nodes, with an engine between them."""
    canvas.box((0, 0, SIDE, ART), "#33261a")
    for top, words, colour in ((74, "MODEL", GREY), (154, "engine", PURPLE), (234, "KSampler", GREY)):
        canvas.box((190, top, 460, top + 62), colour, WHITE, 12, 3)
        canvas.words((325, top + 31), words, 40)
    for top in (136, 216):
        canvas.line([(325, top), (325, top + 18)], AMBER, 8)
    bolt = ((0.55, 0), (0.02, 0.56), (0.42, 0.56), (0.3, 1), (0.96, 0.4), (0.54, 0.4), (0.8, 0))
    canvas.shape([(20 + 150 * across, 84 + 210 * down) for across, down in bolt], AMBER)


def _crafter(canvas: Canvas, words: str) -> None:
    canvas.box((0, 0, SIDE, ART), "#3a2414")
    canvas.words((SIDE - 16, 38), "DynamiCrafter", 34, AMBER, "rm")
    canvas.words((SIDE / 2, 92), words, 42)


def _row(canvas: Canvas, first: Image, last: Image | None) -> None:
    for left, picture in ((20, first), (314, last)):
        box = (left, 122, left + 146, 268)
        if picture is None:
            canvas.box(box, "#3a4157", WHITE, 10, 4)
        else:
            canvas.picture(box, picture, 10, WHITE, 4)


def _half(frame: Image, *, left: bool) -> Image:
    """A side of a frame, without the pixels at its rim."""
    start, end = (2, frame.width // 2) if left else (frame.width // 2, frame.width - 2)
    return frame.crop((start, 2, end, frame.height - 2))
