"""Animated webp and gif through Pillow."""

import itertools
import json
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path

import torch
from PIL import Image

from ...common.errors import InputError
from .formats import OnFrame, VideoOptions
from .frames import Clip, evenly_chosen, to_rgb8

# ComfyUI's core writes "prompt:json" as Model and every other key from Make downward. Below 0x010B follow
# tags that must be numbers, so further keys go to the range that TIFF leaves to private use.
EXIF_PROMPT = 0x0110
EXIF_OTHERS = (*range(0x010F, 0x010A, -1), *range(65000, 65536))
TRANSPARENT = 255
"""Index of the transparent pixels of a gif with transparency: the one that the palette leaves free."""
# A gif's palette is made from at most so many frames, each thinned to about so many pixels a side; one of the
# 256 colours is left free, with which Pillow marks the pixels that did not change.
PALETTE_FRAMES, PALETTE_SIDE, PALETTE_COLOURS = 16, 128, 255


def write_animation(
    clip: Clip,
    path: Path,
    options: VideoOptions,
    texts: Mapping[str, str],
    on_frame: OnFrame,
) -> None:
    """Writes `clip` to `path` as the webp or gif that `options` names; `texts` is JSON text by metadata key.

    Raises:
        InputError: Pillow refuses the frames.
        OSError: the file could not be written.
    """
    is_gif = options.spec.container == "GIF"
    # A gif counts time in hundredths of a second, a webp in thousandths.
    durations = frame_durations(len(clip), options.rate, unit_ms=10 if is_gif else 1)
    settings = _gif_settings(texts, clip) if is_gif else _webp_settings(texts, options.used_crf or 0)
    rest = _LazyImages(clip, make_palette(clip) if is_gif else None, on_frame)
    try:
        with path.open("wb") as file:
            rest.first().save(
                file,
                format=options.spec.container,
                save_all=True,
                append_images=[rest] if rest.n_frames else [],
                duration=durations,
                loop=0,
                **settings,
            )
    except ValueError as error:
        raise InputError(
            f"{options.format} could not encode {len(clip)} frames of {clip.width}x{clip.height}: {error}."
        ) from error


def frame_durations(num_frames: int, rate: Fraction, *, unit_ms: int) -> list[int]:
    """Milliseconds per frame in whole units, spread so that no frame is off by more than half a unit."""
    ends = [round(index * 1000 / (rate * unit_ms)) * unit_ms for index in range(num_frames + 1)]
    return [end - start for start, end in itertools.pairwise(ends)]


def _webp_settings(texts: Mapping[str, str], crf: float) -> dict[str, object]:
    exif = Image.Exif()
    others = iter(EXIF_OTHERS)
    for key, text in texts.items():
        exif[EXIF_PROMPT if key == "prompt" else next(others)] = f"{key}:{text}"
    return {"exif": exif, "quality": 100 - crf, "lossless": crf == 0, "method": 4}


def _gif_settings(texts: Mapping[str, str], clip: Clip) -> dict[str, object]:
    comment = json.dumps({key: json.loads(text) for key, text in texts.items()}) if texts else ""
    # Each frame is taken away before the next one, or what is transparent would show the frame before.
    holes = {"transparency": TRANSPARENT, "disposal": 2} if clip.keeps_alpha else {}
    return {"comment": comment.encode(), **holes}


def make_palette(clip: Clip) -> Image.Image:
    """One palette for the whole clip: with a palette per frame the colours would jump."""
    chosen = evenly_chosen(len(clip.frames), PALETTE_FRAMES)
    step = max(1, min(clip.height, clip.width) // PALETTE_SIDE)
    sample = torch.cat([clip.rgb(position)[::step, ::step] for position in chosen])
    return Image.fromarray(to_rgb8(sample)).quantize(PALETTE_COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=1)


class _LazyImages:
    """All images of a clip but the first, each made when it is sought.

    Pillow makes a list of the images that it is to append, which would hold the whole clip at 8 bits; of a
    multi-frame image it asks for one frame at a time. All else it asks goes to the image last sought.
    """

    def __init__(self, clip: Clip, palette: Image.Image | None, on_frame: OnFrame) -> None:
        self.n_frames = len(clip) - 1
        self._clip, self._palette, self._on_frame = clip, palette, on_frame
        self._image: Image.Image | None = None

    def first(self) -> Image.Image:
        """The image before the ones that can be sought."""
        return self._convert(0)

    def seek(self, frame: int) -> None:
        if frame >= self.n_frames:
            raise EOFError("no more frames")
        self._image = self._convert(frame + 1)

    def __getattr__(self, name: str) -> object:
        return getattr(self._image, name)

    def _convert(self, position: int) -> Image.Image:
        image = Image.fromarray(to_rgb8(self._clip.picture(position)))
        if self._palette is not None:
            image = _indexed(image, self._palette)
        self._on_frame(position + 1, len(self._clip))
        return image


def _indexed(image: Image.Image, palette: Image.Image) -> Image.Image:
    """The picture in a palette's colours; pixels less than half opaque become `TRANSPARENT`."""
    indexed = image.convert("RGB").quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if image.mode == "RGBA":
        indexed.paste(TRANSPARENT, mask=image.getchannel("A").point([255] * 128 + [0] * 128))
        indexed.info["transparency"] = TRANSPARENT
    return indexed
