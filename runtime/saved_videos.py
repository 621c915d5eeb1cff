"""Record of the saved video of each request, so that the same request is answered with the stored file.

The file must be unchanged: its digest is compared, and a changed or removed file is written anew under another name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from ..common.digest import digest
from ..pipeline.media.formats import Audio, VideoOptions, as_json
from ..pipeline.request import Encoded
from ..pipeline.tensor_cache import CacheLimits, ConditioningCache
from .result_cache import content

SCHEMA = 2
"""Raised when the same request is to give another file."""
LIMITS = CacheLimits(memory_bytes=1 << 20, disk_bytes=8 << 20)
"""Limits of the record; the videos are the user's own, and the pack neither counts nor removes them."""


@dataclass(frozen=True)
class SavedVideo:
    """A file in the output folder, the node's lines on it, and the seconds that writing it took."""

    subfolder: str
    filename: str
    sha256: str
    lines: tuple[str, ...]
    elapsed_s: float


def video_key(
    frames: torch.Tensor, options: VideoOptions, audio: Audio | None, metadata: Mapping[str, object], name: str
) -> str:
    """The name of a request: a digest of all that the file holds, and of the prefix that names it."""
    sound = {} if audio is None else {"waveform": audio.waveform}
    return digest(
        {
            "schema": SCHEMA,
            "frames": content({"frames": frames}),
            "audio": [content(sound), None if audio is None else audio.sample_rate],
            "options": asdict(options),
            "metadata": as_json(metadata),
            "name": name,
        }
    )


def note(notes: ConditioningCache, key: str, video: SavedVideo) -> None:
    """Records that the request gave this video."""
    notes.put(key, Encoded({}, (video.subfolder, video.filename, video.sha256, *video.lines)), video.elapsed_s)


def noted(notes: ConditioningCache, key: str) -> SavedVideo | None:
    """The video that the request gave, or None; whether its file is still there and the same is not known yet."""
    hit = notes.get(key)
    if hit is None or len(hit.encoded.notes) < 3:
        return None
    subfolder, filename, sha256, *lines = hit.encoded.notes
    return SavedVideo(subfolder, filename, sha256, tuple(lines), hit.encode_s)
