"""Pictures of the workflows that run as installed, of the frames that they make."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL.Image import Image

from ...common import workflow_names as names
from .canvas import AMBER, GREEN, INK, PANEL, SIDE, SKY, WHITE, Canvas, Point, width_of

ART = 316
"""What is drawn of a workflow ends here; below are its titles. The page lays a mark over the upper left corner."""


GAP = 8
"""Pixels between two clips that a workflow lays side by side."""
GREY, PURPLE = "#5b6376", "#7b4fb0"
"""Nodes of the core, and ours."""


@dataclass(frozen=True)
class Pictures:
    """What the workflows take and make: the input, and the frames of each workflow that has run."""

    lake: Image
    clips: Mapping[str, Sequence[Image]]

    def frame(self, name: str, share: float) -> Image:
        """A frame of a workflow's clip, 0 for the first and 1 for the last one."""
        clip = self.clips[name]
        return clip[round(share * (len(clip) - 1))]


def first_video(canvas: Canvas, pictures: Pictures) -> None:
    """The picture, the clip that plays, and the clip's moments below."""
    canvas.box((0, 0, SIDE, ART), "#2b2140")
    canvas.picture((20, 80, 152, 212), pictures.lake, 10, WHITE, 4)
    canvas.arrow([(160, 146), (204, 146)], AMBER, 12)
    canvas.picture((238, 6, 456, 218), pictures.frame(names.QUICK_START, 0.5), 10, WHITE, 4)
    canvas.play((347, 150), 48)
    film(canvas, 226, [pictures.frame(names.QUICK_START, share / 5) for share in range(6)], 90)


def film(canvas: Canvas, top: float, frames: Sequence[Image | None], height: float = 102) -> None:
    """A strip of film over the whole width; None is a frame that nobody has made."""
    canvas.box((0, top, SIDE, top + height), "#0b0c10")
    width = SIDE / len(frames)
    for hole in range(24):
        for low in (top + 4, top + height - 11):
            canvas.box((hole * 20 + 6, low, hole * 20 + 15, low + 7), "#e8e8f0", radius=2)
    for number, frame in enumerate(frames):
        place = (number * width + 3, top + 15, (number + 1) * width - 3, top + height - 15)
        if frame is None:
            canvas.box(place, "#3a4157", radius=4)
        else:
            canvas.picture(place, frame, radius=4)


def two_prompts(canvas: Canvas, pictures: Pictures) -> None:
    """The end of both clips side by side, each with its way to move."""
    both = pictures.frame(names.TWO_PROMPTS, 1)
    left = both.crop((0, 0, both.height, both.height))
    right = both.crop((both.width - both.height, 0, both.width, both.height))
    middle = SIDE / 2
    canvas.picture((0, 0, middle - 3, ART), left)
    canvas.picture((middle + 3, 0, SIDE, ART), right)
    for across, down in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        start = (98 + across * 24, 166 + down * 22)
        canvas.arrow([start, (start[0] + across * 34, start[1] + down * 32)])
    canvas.arrow([(446, 172), (326, 172)], width=9)
    bubble(canvas, (117, 278), "zoom in")
    bubble(canvas, (363, 278), "pan left")
    canvas.picture((190, 78, 290, 178), pictures.lake, radius=10, edge=WHITE, width=5)


def bubble(canvas: Canvas, centre: Point, words: str, colour: str = WHITE, ink: str = INK, size: float = 27) -> None:
    """A word on a plate of its own."""
    half = width_of(words, size) / 2 + 14
    x, y = centre
    canvas.box((x - half, y - size * 0.78, x + half, y + size * 0.78), colour, radius=size * 0.6)
    canvas.words(centre, words, size, ink)


def smoother(canvas: Canvas, pictures: Pictures) -> None:
    """Frames of the model, and between them those that are put in."""
    canvas.box((0, 0, SIDE, ART), "#152238")
    clip = pictures.clips[names.SMOOTHER]
    for number in (0, 2, 4, 1, 3):
        between = number % 2 == 1
        left, top = 12 + number * 84, 116 if between else 80
        frame = clip[round(number * (len(clip) - 1) / 4)]
        canvas.picture((left, top, left + 120, top + 120), frame, 10, AMBER if between else WHITE, 6)
        if between:
            canvas.disc((left + 60, top + 120), 21, AMBER)
            canvas.words((left + 60, top + 119), "+", 38, INK)
    canvas.words((SIDE / 2, 285), "8  →  16 fps", 40, WHITE)


def two_phases(canvas: Canvas, pictures: Pictures) -> None:
    """The small clip of the first phase, which is the quick start's, and the large one of the second."""
    canvas.box((0, 0, SIDE, ART), "#2a1c3a")
    canvas.picture((26, 142, 146, 262), pictures.frame(names.QUICK_START, 0.2), 8, WHITE, 4)
    canvas.picture((206, 22, 466, 282), pictures.frame(names.TWO_PHASES, 0.2), 10, WHITE, 4)
    canvas.arrow([(152, 200), (188, 200)], AMBER, 10)
    for number, centre in (("1", (86, 142)), ("2", (336, 34))):
        canvas.disc(centre, 25, AMBER, INK, 3)
        canvas.words(centre, number, 32, INK)
    canvas.words((86, 286), "128", 30)
    bubble(canvas, (336, 282), "256 × 256", WHITE, INK, 28)


def mixed(canvas: Canvas, pictures: Pictures) -> None:
    """A graph whose boxes are the core's and ours in turn, and what comes out of it."""
    canvas.box((0, 0, SIDE, ART), "#202531")
    canvas.picture((236, 74, 464, 302), pictures.frame(names.MIXED, 1), 10, WHITE, 4)
    for number, (words, colour) in enumerate((("core", GREY), ("I2V", PURPLE), ("core", GREY))):
        top = 84 + number * 76
        canvas.box((20, top, 164, top + 54), colour, WHITE, 10, 2)
        canvas.words((92, top + 27), words, 34)
        if number:
            canvas.line([(92, top - 21), (92, top - 1)], AMBER, 7)
    canvas.arrow([(168, 263), (206, 263)], AMBER, 10)
    canvas.play((350, 188), 38)


def low_memory(canvas: Canvas, pictures: Pictures) -> None:
    """A gauge that stands low, and the short clip below it."""
    canvas.box((0, 0, SIDE, ART), "#10261d")
    centre, radius = (SIDE / 2, 196), 132
    for start, end, colour in ((180, 242, GREEN), (245, 297, "#6b6f45"), (300, 360, "#6e3a34")):
        canvas.arc(centre, radius, (start, end), colour, 36)
    canvas.arrow([centre, (152, 150)], WHITE, 11)
    canvas.disc(centre, 17, WHITE)
    canvas.words((332, 192), "GiB", 40)
    film(canvas, 222, [pictures.frame(names.LOW_MEMORY, share / 7) for share in range(8)], 94)


def compare(canvas: Canvas, pictures: Pictures) -> None:
    """Half of a frame by eager PyTorch, half by the engine, with a handle between."""
    both = pictures.frame(names.COMPARE, 1)
    edge = (both.width - GAP) // 2  # above both stands what they are
    left = both.crop((0, both.height - edge, edge // 2, both.height))
    right = both.crop((both.width - edge // 2, both.height - edge, both.width, both.height))
    middle = SIDE / 2
    canvas.picture((0, 0, middle, ART), left)
    canvas.picture((middle, 0, SIDE, ART), right)
    canvas.box((middle - 4, 0, middle + 4, ART), WHITE)
    canvas.disc((middle, 158), 36, WHITE)
    canvas.shape([(middle - 24, 158), (middle - 6, 143), (middle - 6, 173)], INK)
    canvas.shape([(middle + 24, 158), (middle + 6, 143), (middle + 6, 173)], INK)
    bubble(canvas, (118, 262), "eager", WHITE, INK, 34)
    bubble(canvas, (362, 262), "engine", SKY, INK, 34)


def prebuild(canvas: Canvas, pictures: Pictures) -> None:
    """The networks of a model, of which each has its engine."""
    canvas.box((0, 0, SIDE, ART), "#132a3f")
    rows = ("text encoder", "image encoder", "denoiser", "VAE decoder")
    for number, words in enumerate(rows):
        top = 72 + number * 59
        canvas.box((22, top, SIDE - 22, top + 50), PANEL, SKY, 10, 2)
        canvas.words((42, top + 25), words, 30, WHITE, "lm")
        canvas.disc((SIDE - 54, top + 25), 19, GREEN)
        canvas.line([(SIDE - 64, top + 25), (SIDE - 56, top + 33), (SIDE - 44, top + 16)], WHITE, 5)
    canvas.words((350, 36), "engines", 42, SKY)
