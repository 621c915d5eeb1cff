"""Possible contents of the clips and their wording in captions.

Directions name the camera for the camera's motions (`pan left`: the view goes left, so the picture's
content goes right) and the shape for a shape's motions (`moves left`: the shape goes left on the
screen). Rotations are as seen on the screen. A caption is a row of a finite table, so that its tokens
can be looked up on the device that trains.
"""

from itertools import product

CAMERA = (
    "pan left", "pan right", "pan up", "pan down", "zoom in", "zoom out",
    "rotate clockwise", "rotate counterclockwise", "track left", "track right", "still",
)  # fmt: skip
SHAPE = (
    "moves left", "moves right", "moves up", "moves down", "grows", "shrinks",
    "turns clockwise", "turns counterclockwise", "bounces",
)  # fmt: skip
MOTIONS = CAMERA + SHAPE
STILL = MOTIONS.index("still")
FIRST_SHAPE = len(CAMERA)
VIEWS = CAMERA.index("track left")  # the motions before it carry the whole view as one
TRACKS = (MOTIONS.index("track left"), MOTIONS.index("track right"))
TURNS = (MOTIONS.index("turns clockwise"), MOTIONS.index("turns counterclockwise"))

# How often each motion is drawn, in the order of MOTIONS.
WEIGHTS = (7, 7, 7, 7, 7, 7, 7, 7, 4, 4, 6, 5, 5, 5, 5, 2.5, 2.5, 2, 2, 3)

ADVERBS = ("", "slowly", "quickly")
ADVERB_SPEED = (1.0, 0.5, 1.5)

COLOURS = {
    "red": (0.86, 0.10, 0.12), "orange": (0.96, 0.52, 0.08), "yellow": (0.97, 0.88, 0.15),
    "green": (0.12, 0.66, 0.22), "cyan": (0.12, 0.80, 0.86), "blue": (0.12, 0.25, 0.85),
    "purple": (0.50, 0.14, 0.70), "pink": (0.98, 0.50, 0.72),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "diamond", "heart")
LETTERS = "AEFHKLNTUXYZ"
THINGS = SHAPES + tuple(f"letter {letter}" for letter in LETTERS)
ANGULAR = tuple(row for row, name in enumerate(THINGS) if name not in ("circle", "ring"))

# The last wording of a camera's motion leaves the direction open; training uses it rarely.
_WORDINGS = {
    "pan": ("pan {way}", "the camera pans {way}", "the camera pans"),
    "zoom": ("zoom {way}", "the camera zooms {way}", "the camera zooms"),
    "rotate": ("rotate {way}", "the camera rotates {way}", "the camera rotates"),
    "track": ("track {way}", "the camera tracks {way}", "the camera tracks"),
    "still": ("still", "nothing moves", "still"),
}
WORDINGS = 3
OPEN_WORDING = 2


def camera_caption(motion: str, adverb: str, wording: int) -> str:
    """Words for a camera's motion; `still` takes no adverb."""
    kind, _, way = motion.partition(" ")
    text = _WORDINGS[kind][wording].format(way=way)
    return text if motion == "still" or not adverb else f"{text} {adverb}"


def shape_caption(motion: str, adverb: str, wording: int, colour: str, thing: str) -> str:
    """Words for a named thing's motion, with either article."""
    verb, _, way = motion.partition(" ")
    words = ("a" if wording else "the", colour, thing, verb, way, adverb)
    return " ".join(word for word in words if word)


def captions() -> list[str]:
    """Every caption; `caption_index` gives the row."""
    camera = [camera_caption(*row) for row in product(CAMERA, ADVERBS, range(WORDINGS))]
    shape = [
        shape_caption(motion, adverb, wording, colour, thing)
        for motion, adverb, wording, colour, thing in product(SHAPE, ADVERBS, range(2), COLOURS, THINGS)
    ]
    return camera + shape
