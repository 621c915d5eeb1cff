"""Paints lake.png, the picture that the demo and the example workflows start from.

Painted rather than photographed, so that it is free of rights and the same on every machine:
    python workflows/pictures/make_pictures.py [FOLDER]

Everything is computed at twice the size and scaled down. Pictures are float arrays of shape
(height, width, 3) with values from 0 to 1; x and y are fractions of the width and the height.
"""

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

SIZE = 512
CANVAS = 2 * SIZE
HORIZON = 0.60
SUN = (0.64, 0.365)
SEED = 20

SKY = (
    (0.0, "#26356b"),
    (0.26, "#5d5a9c"),
    (0.48, "#c5809f"),
    (0.64, "#f3a98b"),
    (0.82, "#fbcf9a"),
    (1.0, "#fde3b4"),
)
# Far to near: mean height over the horizon, roughness, colour of the crest, octaves of noise, where it starts
HILLS = (
    (0.135, 0.120, "#c493a6", 6, 3.1),
    (0.085, 0.100, "#9a749b", 6, 17.4),
    (0.048, 0.066, "#6c578b", 7, 31.9),
    (0.016, 0.026, "#494475", 7, 47.2),
)
CLOUD_ROWS = (0.075, 0.115, 0.150, 0.195, 0.225, 0.262, 0.290, 0.318, 0.345)
MIST = "#fbcfa6"
SHORE = "#1f2648"
DEEP_WATER = "#16234f"
SUNLIGHT = "#fff1c9"
BOAT = (0.335, 0.770)
BOAT_SIZE = 0.042


def colour(code: str) -> Array:
    """The colour `#rrggbb` as three numbers."""
    return np.array([int(code[at : at + 2], 16) for at in (1, 3, 5)]) / 255


def grid(height: int = CANVAS) -> tuple[Array, Array]:
    """x and y of each pixel's centre in a picture of CANVAS columns, each of shape (height, CANVAS)."""
    y, x = np.mgrid[0:height, 0:CANVAS]
    return (x + 0.5) / CANVAS, (y + 0.5) / CANVAS


def smoothstep(low: float, high: float, value: Array) -> Array:
    """0 below `low`, 1 above `high`, and a smooth way between them."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def blend(under: Array, over: Array, alpha: Array) -> Array:
    """`over` laid on `under` where `alpha`, of shape (height, width), is 1."""
    return under + (over - under) * alpha[..., None]


def noise(position: Array, octaves: int, rng: np.random.Generator) -> Array:
    """Smooth noise of one dimension, about -1 to 1, each octave half as high and twice as fine."""
    total, height = np.zeros_like(position), 1.0
    for octave in range(octaves):
        knots = rng.random(256) * 2 - 1
        at = position * 2**octave
        left = np.floor(at).astype(int)
        t = at - left
        t = t * t * t * (t * (6 * t - 15) + 10)
        total += height * (knots[left % 256] * (1 - t) + knots[(left + 1) % 256] * t)
        height *= 0.5
    return total / 1.6


def sky(x: Array, y: Array) -> Array:
    """The gradient, the sun with its glow, and thin clouds."""
    stops, codes = zip(*SKY, strict=True)
    colours = np.stack([colour(code) for code in codes])
    up = np.clip(y / HORIZON, 0, 1)
    picture = np.stack([np.interp(up, stops, colours[:, channel]) for channel in range(3)], axis=-1)
    distance = np.hypot(x - SUN[0], y - SUN[1])
    for width, strength, code in ((0.36, 0.30, "#ffa98f"), (0.20, 0.42, "#ffd490"), (0.085, 0.55, "#fff0b8")):
        picture = blend(picture, colour(code), strength * np.exp(-((distance / width) ** 2)))
    picture = clouds(picture, x, y)
    return blend(picture, colour("#fff6dc"), 1 - smoothstep(0.040, 0.043, distance))


def clouds(picture: Array, x: Array, y: Array) -> Array:
    """Thin flat streaks, lit from below by the sun."""
    rng = np.random.default_rng(SEED + 1)
    near = np.exp(-((np.hypot(x - SUN[0], (y - SUN[1]) * 1.3) / 0.34) ** 2))[..., None]
    tint = colour("#e88fa0") * (1 - near) + colour("#fff0c4") * near
    for centre in CLOUD_ROWS:
        row = centre + 0.010 * noise(x * 2.3 + 40 * centre, 3, rng)
        cover = smoothstep(0.0, 0.8, noise(x * 2.0 + 90 * centre, 5, rng))
        depth = 0.0015 + 0.0100 * cover
        streak = np.where(y < row, np.exp(-(((y - row) / depth) ** 2)), np.exp(-(((y - row) / (0.35 * depth)) ** 2)))
        picture = blend(picture, tint, 0.62 * streak * cover)
    return picture


def hills(picture: Array, x: Array, y: Array) -> Array:
    """Ranges one before the other, each darker than the last and fading into mist towards its foot."""
    mist = colour(MIST)
    for index, (crest, rough, code, octaves, offset) in enumerate(HILLS):
        rng = np.random.default_rng(SEED + 10 + index)
        outline = HORIZON - crest - rough * noise(x * 2.6 + offset, octaves, rng)
        below = np.clip((y - outline) / (HORIZON - outline + 0.02), 0, 1)
        sunlit = np.exp(-(((x - SUN[0]) / 0.30) ** 2))
        fog = (0.22 + 0.50 * sunlit) * (1 - 0.12 * index) * below**1.4
        body = colour(code) + (mist - colour(code)) * fog[..., None]
        picture = blend(picture, body, smoothstep(-0.001, 0.001, y - outline))
    return picture


def shore(picture: Array, x: Array, y: Array) -> Array:
    """A dark wooded point on the left and a lower one on the right, with the tips of their pines."""
    rng = np.random.default_rng(SEED + 30)
    land = 0.100 * (1 - smoothstep(0.0, 0.40, x)) + 0.055 * smoothstep(0.80, 1.02, x)
    height = land * (1 + 0.20 * noise(x * 9, 3, rng))
    trees = smoothstep(0.003, 0.02, land)
    for spacing, tall in ((0.0135, 0.046), (0.0097, 0.032), (0.0071, 0.022)):
        cell = np.floor(x / spacing)
        jitter = rng.random(512)[cell.astype(int) % 512]
        beside = np.abs(x / spacing - cell - 0.5 - 0.3 * (jitter - 0.5))
        tip = tall * trees * (0.25 + 0.75 * jitter) * (1 - 2.1 * beside)
        height = np.maximum(height, land + tip)
    mask = smoothstep(-0.0008, 0.0008, y - (HORIZON - height)) * (land > 0.0005)
    haze = (0.34 * np.exp(-(((y - HORIZON) / 0.030) ** 2)))[..., None]
    return blend(picture, colour(SHORE) + (colour("#8a5f86") - colour(SHORE)) * haze, mask)


def waves(x: Array, depth: Array) -> Array:
    """The height of the water, about -1 to 1; `depth` goes from 0 at the horizon to 1 at our feet."""
    rng = np.random.default_rng(SEED + 40)
    # Crests crowd towards the horizon as they do on a lake: they are even in 1 / distance.
    row = 1 / (depth + 0.14)
    total = np.zeros_like(x)
    for cycles, along, strength in (
        (13.0, 3.0, 1.0),
        (23.0, -5.0, 0.8),
        (41.0, 9.0, 0.6),
        (67.0, -17.0, 0.4),
        (151.0, 31.0, 0.5),
    ):
        bend = noise(x * (3 + 0.4 * abs(along)) + cycles, 3, rng) * 3.2 + noise(row * 2.0 + cycles, 3, rng) * 2.0
        # A wave narrower than a pixel is flat.
        wide = 1 - smoothstep(0.5, 2.0, cycles * row**2 / CANVAS / (1 - HORIZON))
        total += strength * wide * np.sin(cycles * row + along * x + bend)
    return total / 1.9


def lake(above: Array, x: Array, y: Array) -> Array:
    """The picture with everything below the horizon mirrored in moving water, and the boat on it."""
    depth = np.clip((y - HORIZON) / (1 - HORIZON), 0, 1)
    wave = waves(x, depth)
    slope = wave * (0.0012 + 0.0160 * depth)
    source_y = np.clip(2 * HORIZON - y + 1.5 * slope - 0.06 * depth * depth, 0, HORIZON - 0.5 / CANVAS)
    source_x = np.clip(x + 0.35 * slope, 0, 1 - 0.5 / CANVAS)
    water = above[(source_y * CANVAS).astype(int), (source_x * CANVAS).astype(int)]
    under_sun = np.exp(-(((x - SUN[0]) / 0.11) ** 2))
    dark = (0.10 + 0.36 * depth) * (1 - 0.6 * under_sun) - 0.12 * wave * smoothstep(0, 0.5, depth)
    water = blend(water, colour(DEEP_WATER), np.clip(dark, 0, 1))
    water = blend(water, colour(SUNLIGHT), glitter(x, depth, wave))
    water = blend(water, colour(MIST), 0.38 * np.exp(-((depth / 0.022) ** 2)))
    for mask, code in boat(x + 0.8 * slope, 2 * BOAT[1] - y + 0.8 * slope):
        water = blend(water, 0.78 * colour(code) + 0.22 * colour(DEEP_WATER), 0.72 * mask * (y > BOAT[1]))
    picture = blend(above, water, (y >= HORIZON).astype(float))
    for mask, code in boat(x, y):
        picture = blend(picture, colour(code) * np.ones(3), mask * (y <= BOAT[1] + 0.003))
    return picture


def glitter(x: Array, depth: Array, wave: Array) -> Array:
    """How much sunlight each point of the water throws back: a path under the sun, broken by the waves."""
    width = 0.024 + 0.075 * depth
    path = np.exp(-(((x - SUN[0] - 0.010 * wave * depth) / width) ** 2))
    glow = 0.16 * np.exp(-(((x - SUN[0]) / (2.4 * width)) ** 2))
    return np.clip(glow + 0.90 * path * smoothstep(0.10, 0.90, wave), 0, 1) * (1 - 0.35 * depth)


def polygon(x: Array, y: Array, corners: tuple[tuple[float, float], ...]) -> Array:
    """1 inside the convex polygon (clockwise on the screen), 0 outside, with soft edges."""
    inside = np.full_like(x, np.inf)
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1], strict=True):
        length = np.hypot(bx - ax, by - ay)
        inside = np.minimum(inside, ((bx - ax) * (y - ay) - (by - ay) * (x - ax)) / length)
    return smoothstep(-0.02, 0.02, inside)


def boat(x: Array, y: Array) -> list[tuple[Array, str]]:
    """Masks and colours, from back to front, of a small red sailing boat whose waterline is at BOAT."""
    u, v = (x - BOAT[0]) / BOAT_SIZE, (y - BOAT[1]) / BOAT_SIZE
    belly = 1 + 0.30 * np.sin(np.clip((v + 2.55) / 2.1, 0, 1) * np.pi)
    return [
        (polygon(u, v, ((-0.02, -2.66), (0.06, -2.66), (0.06, -0.2), (-0.02, -0.2))), "#4a2a2e"),
        (polygon(u / belly, v, ((0.08, -2.52), (0.92, -0.52), (0.08, -0.46))), "#fff0d2"),
        (polygon(u / belly, v, ((-0.06, -2.25), (-0.06, -0.46), (-0.80, -0.42))), "#f3bf95"),
        (polygon(u, v, ((-1.02, -0.30), (1.12, -0.36), (0.76, 0.10), (-0.76, 0.10))), "#cf2f2a"),
        (polygon(u, v, ((-1.02, -0.30), (1.12, -0.36), (1.06, -0.24), (-0.98, -0.19))), "#ff6a4d"),
        (polygon(u, v, ((-0.84, -0.03), (0.88, -0.05), (0.76, 0.10), (-0.76, 0.10))), "#8c1c27"),
    ]


def main(folder: Path) -> None:
    """Write lake.png into `folder`."""
    x, y = grid()
    picture = shore(hills(sky(x, y), x, y), x, y)
    picture = lake(picture, x, y)
    pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.LANCZOS).save(folder / "lake.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent)
