"""A clip at a glance: some of its frames, numbered, on one picture."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...common.errors import InputError
from .frames import evenly_chosen, make_clip, to_rgb8

GAP, LABEL_HEIGHT, LABEL_SIZE = 8, 18, 12
CAPTION_HEIGHT, CAPTION_SIZE = 28, 15
BACKGROUND, LABEL_COLOUR, CAPTION_COLOUR = (24, 24, 28), (200, 200, 205), (240, 240, 245)
# Small frames are enlarged to this width, as far as the sheet has room.
MIN_TILE_WIDTH = 192


def contact_sheet(
    frames: Tensor, *, count: int = 8, columns: int = 4, labels: bool = True, max_width: int = 1280
) -> Image.Image:
    """An RGB picture of at most `count` evenly chosen frames, the first and the last among them.

    `frames` is floating point [frames, height, width, 1 | 3 | 4] from 0 to 1; `max_width` is the greatest
    width of the sheet in pixels. With `labels` each picture has its index, counted from 0, beneath it.

    Raises:
        InputError: frames that cannot be shown (see `make_clip`), a count or columns below 1, or a sheet
            too narrow for its columns.
    """
    clip = make_clip(frames)
    if count < 1 or columns < 1:
        raise InputError(f"A contact sheet needs a frame and a column, but got {count} and {columns}.")
    chosen = evenly_chosen(len(clip), count)
    columns = min(columns, len(chosen))
    room = (max_width - GAP * (columns + 1)) // columns
    if room < 1:
        raise InputError(f"A contact sheet of {columns} columns does not fit into {max_width} pixels.")
    width = min(room, max(clip.width, MIN_TILE_WIDTH))
    height = max(1, round(clip.height * width / clip.width))
    step_x, step_y = width + GAP, height + GAP + (LABEL_HEIGHT if labels else 0)
    rows = math.ceil(len(chosen) / columns)
    sheet = Image.new("RGB", (step_x * columns + GAP, step_y * rows + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(LABEL_SIZE)
    for place, index in enumerate(chosen):
        left, top = GAP + place % columns * step_x, GAP + place // columns * step_y
        sheet.paste(_tile(clip.rgb(index), width, height), (left, top))
        if labels:
            middle = (left + width / 2, top + height + LABEL_HEIGHT / 2)
            draw.text(middle, str(index), LABEL_COLOUR, font, anchor="mm")
    return sheet


def captioned(rows: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Sheets one below the other, each under its caption."""
    height = sum(sheet.height + CAPTION_HEIGHT for _, sheet in rows)
    whole = Image.new("RGB", (max(sheet.width for _, sheet in rows), height), BACKGROUND)
    draw, font, top = ImageDraw.Draw(whole), ImageFont.load_default(CAPTION_SIZE), 0
    for caption, sheet in rows:
        draw.text((GAP, top + CAPTION_HEIGHT / 2 + GAP / 2), caption, CAPTION_COLOUR, font, anchor="lm")
        whole.paste(sheet, (0, top + CAPTION_HEIGHT))
        top += CAPTION_HEIGHT + sheet.height
    return whole


def _tile(frame: Tensor, width: int, height: int) -> Image.Image:
    image = Image.fromarray(to_rgb8(frame))
    # Enlarged pixels stay pixels, so that the sheet hides no fault of a small clip.
    filter_ = Image.Resampling.NEAREST if width > image.width else Image.Resampling.LANCZOS
    return image if image.size == (width, height) else image.resize((width, height), filter_)
