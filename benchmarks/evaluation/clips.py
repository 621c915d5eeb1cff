"""The clips that presets are judged on: the bundled model's own, with their known motion, or any picture's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ...common.errors import InputError
from ...demo_model.training import evaluate, measure
from ...demo_model.training.clips import Clips
from ...pipeline.media.image import rgb
from ...pipeline.request import ClipRequest, ClipSize

MOTIONS = ("pan left", "zoom in", "rotate clockwise", "moves right")
"""Motions of the bundled model's clips: of the camera, and of a named shape."""
FIRST_SEED = 20_000
MOST_SEEDS = 16
BUNDLED_SIZE = ClipSize(128, 128, 16)
BUNDLED_GUIDANCE = 3.0


@dataclass(frozen=True)
class JudgedClip:
    """A request and its seed; `known` is the drawn clip whose motion it should have, where that is known."""

    name: str
    request: ClipRequest
    seed: int
    known: Clips | None = None


def bundled_clips(seeds: int) -> list[JudgedClip]:
    """Held-out clips of the bundled model, `seeds` of each motion, the motions in turn; at most 16."""
    drawn = [
        evaluate.held_out(FIRST_SEED + 1000 * number, MOST_SEEDS, (motion,), torch.device("cpu"))
        for number, motion in enumerate(MOTIONS)
    ]
    if not 1 <= seeds <= MOST_SEEDS:
        raise InputError(f"Seeds are 1 to {MOST_SEEDS} for each motion, found {seeds}.")
    return [_bundled_clip(clips, seed) for seed in range(seeds) for clips in drawn]


def _bundled_clip(clips: Clips, number: int) -> JudgedClip:
    one = evaluate.select(clips, slice(number, number + 1))
    picture, prompt = evaluate.first_frames(one)[0], evaluate.prompts_of(one)[0]
    pixels = (picture.permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    request = ClipRequest(Image.fromarray(pixels), prompt, "", *BUNDLED_SIZE, int(one.fps[0]))
    return JudgedClip(f"{int(one.seeds[0]) % (1 << 20):06d} {prompt}", request, number, one)


def picture_clips(
    pictures: Sequence[Path], prompts: Sequence[str], seeds: int, size: ClipSize, fps: int
) -> list[JudgedClip]:
    """Every picture with every prompt and seed; raises InputError without a picture."""
    if not pictures:
        raise InputError("Another checkpoint than the bundled one is judged on your pictures: name some by --picture.")
    found = []
    for path in pictures:
        try:
            with Image.open(path) as opened:
                picture = rgb(opened)
        except (OSError, ValueError) as error:
            raise InputError(f"Expected a picture in {path}, which cannot be read: {error}.") from error
        for prompt in prompts:
            request = ClipRequest(picture, prompt, "", *size, fps)
            found += [JudgedClip(f"{path.stem} {prompt} {seed}", request, seed) for seed in range(seeds)]
    return found


def moves_right(frames: torch.Tensor, known: Clips) -> bool:
    """Whether frames [frames, height, width, 3] move as their drawn clip says, by the model's own judge."""
    clip = frames.movedim(-1, 1)[None]
    return evaluate.agreement(known, evaluate.follow(clip, known))[0]


@dataclass(frozen=True)
class Motion:
    """A clip's speed in pixels a frame at 128x128, and its warping error along its own track."""

    speed: float
    warping_error: float


def motion_of(frames: torch.Tensor) -> Motion:
    """The view's motion in frames [frames, height, width, 3] from 0 to 1, scaled to a square of 128 pixels."""
    square = torch.nn.functional.interpolate(frames.movedim(-1, 1), (128, 128), mode="area")[None]
    track = measure.track(square)
    error = float(measure.warping_error(square, track.steps)[0])
    return Motion(float(track.speed(measure.VIEW_RADIUS)[0]), error)
