"""From a request to conditioning, once per clip and then from the cache."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch

from ..common.errors import InputError
from ..common.validation import check_number, shown
from .models.base import Run, Stage, VideoModel
from .request import ClipRequest, ClipSize, Encoded
from .tensor_cache import ConditioningCache

SCHEMA = 1
"""Raised when the meaning of a cached entry changes."""

MIN_SIDE, MAX_SIDE = 64, 2048
MAX_FRAMES = 161
"""The most that any family makes."""
MAX_FPS = 120
MAX_PROMPT_CHARS = 100_000
MAX_MOTION = 1023
MAX_NOISE_AUG = 10.0
MAX_SEED = (1 << 64) - 1

_FIELDS: dict[str, tuple[str, int, int] | tuple[str, int, float]] = {
    "prompt": ("The prompt", 0, MAX_PROMPT_CHARS),
    "negative_prompt": ("The negative prompt", 0, MAX_PROMPT_CHARS),
    "width": ("Width", MIN_SIDE, MAX_SIDE),
    "height": ("Height", MIN_SIDE, MAX_SIDE),
    "num_frames": ("The number of frames", 1, MAX_FRAMES),
    "fps": ("Fps", 1, MAX_FPS),
    "motion_bucket_id": ("The motion bucket", 0, MAX_MOTION),
    "noise_aug_strength": ("The noise augmentation's strength", 0, MAX_NOISE_AUG),
    "noise_aug_seed": ("The noise augmentation's seed", 0, MAX_SEED),
}
"""Name in messages, least and greatest value or length of each field of a request."""


@dataclass(frozen=True)
class Conditioning:
    """Inputs of the sampler for a clip. Width and height in pixels.

    `tensors` as in `Encoded`. `place` is the source of the conditioning: `encoded`, `memory` or `disk`; `encode_s`
    is the time of the encoding in seconds, then or now.
    """

    family: str
    width: int
    height: int
    num_frames: int
    fps: int
    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...]
    place: str
    encode_s: float

    @property
    def size(self) -> ClipSize:
        """Sides in pixels, and frames."""
        return ClipSize(self.width, self.height, self.num_frames)


def check_request(request: ClipRequest) -> None:
    """Raises InputError with one sentence for the first value that cannot be served."""
    check_fields({name: getattr(request, name) for name in _FIELDS})
    for picture in (request.picture, request.last_picture):
        if picture is not None and picture.mode != "RGB":
            raise InputError(f"Expected a picture in RGB, found {picture.mode}.")


def check_fields(fields: Mapping[str, object]) -> None:
    """As `check_request`, for the fields of a request that are known so far."""
    for name, value in fields.items():
        label, least, most = _FIELDS[name]
        if name.endswith("prompt"):
            _check_text(label, value, int(most))
        elif isinstance(most, float):
            check_number(f"{label} is", value, least, most)
        else:
            check_whole(label, value, least, most)
        if name in ("width", "height") and isinstance(value, int) and value % 8:
            raise InputError(f"{label} is a multiple of 8, found {value}: the nearest is {round(value / 8) * 8}.")


def _check_text(label: str, value: object, most: int) -> None:
    if not isinstance(value, str):
        raise InputError(f"{label} is a text, found {shown(value)}.")
    if len(value) > most:
        raise InputError(f"{label} has at most {most} characters, found {len(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:  # half of a surrogate pair, which no tokenizer takes
        raise InputError(
            f"{label} is valid Unicode, found {value[error.start]!r} at character {error.start + 1}."
        ) from error


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raises InputError unless `value` is an int (no bool) from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise InputError(f"{name} is a whole number from {least} to {most}, found {shown(value)}.")


def conditioning_key(model: VideoModel, request: ClipRequest, precision: str) -> str:
    """The name of a request's conditioning: a digest of everything that goes into it."""
    unused = {*model.unused, *model.ignored_fields}
    names = {field.name for field in fields(request)} - {"picture", "last_picture", *unused}
    content: dict[str, object] = {
        "schema": SCHEMA,
        "family": model.family,
        "model": model.encode_sha256,
        "precision": precision,
        "picture": hashlib.sha256(request.picture.tobytes()).hexdigest(),
        "picture_size": request.picture.size,
        "request": {name: getattr(request, name) for name in names},
    }
    if request.last_picture is not None and "last_picture" not in unused:
        content["last_picture"] = hashlib.sha256(request.last_picture.tobytes()).hexdigest()
        content["last_picture_size"] = request.last_picture.size
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unused_notes(model: VideoModel, request: ClipRequest) -> tuple[str, ...]:
    """Sentences on fields that the request sets and the family does not use; fields at their default need none."""
    found = [told for name, told in model.unused.items() if getattr(request, name) != getattr(ClipRequest, name, "")]
    return tuple(dict.fromkeys(found))


def condition(
    model: VideoModel,
    request: ClipRequest,
    precision: str,
    run: Run,
    cache: ConditioningCache,
    stage: Stage,
    prepare: Callable[[], None] = lambda: None,
) -> Conditioning:
    """The request's conditioning, encoded now or found in the cache.

    Only when the cache has no entry, `prepare` is called once, outside the time of the encoding, and then
    `run`. Raises InputError for a request that cannot be served.
    """
    check_request(request)
    key = conditioning_key(model, request, precision)
    hit = cache.get(key)
    if hit is not None:
        return _conditioning(model, request, hit.encoded, hit.place, hit.encode_s)
    prepare()
    started = time.monotonic()
    encoded = model.encode(request, run, stage)
    if not all(bool(torch.isfinite(tensor).all()) for tensor in encoded.tensors.values()):
        raise InputError("The encoders gave values that are not finite: choose fp32, or another checkpoint.")
    encode_s = time.monotonic() - started
    cache.put(key, encoded, encode_s)
    return _conditioning(model, request, encoded, "encoded", encode_s)


def _conditioning(
    model: VideoModel, request: ClipRequest, encoded: Encoded, place: str, encode_s: float
) -> Conditioning:
    return Conditioning(
        family=model.family,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        fps=request.fps,
        tensors=encoded.tensors,
        notes=(*encoded.notes, *unused_notes(model, request)),
        place=place,
        encode_s=encode_s,
    )
