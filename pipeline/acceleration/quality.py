"""What the judge has measured of each preset, in a file of the pack: `run.py evaluate --publish` writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...common.atomic_file import write_text
from .settings import Acceleration

FILE = Path(__file__).with_name("quality.json")
NOT_JUDGED = "Quality: not judged with trained weights; run.py evaluate judges it on a checkpoint that is there."


@dataclass(frozen=True)
class Quality:
    """Figures of a preset against exact clips of so many steps; `accelerators` are the words on what was judged.

    PSNR in dB, mean and worst over the clips; `right_percent` of the clips that the exact ones have right.
    """

    model: str
    clips: int
    steps: int
    psnr_db: float
    worst_psnr_db: float
    ssim: float
    right_percent: float
    accelerators: tuple[str, ...]

    @property
    def line(self) -> str:
        """The sentence for the user."""
        return (
            f"Quality on {self.model}, {self.clips} clips against {self.steps} exact steps: "
            f"PSNR {self.psnr_db:.1f} dB, worst {self.worst_psnr_db:.1f}, SSIM {self.ssim:.3f}, "
            f"motion right in {self.right_percent:.0f} %."
        )


def quality_line(family: str, preset: str, acceleration: Acceleration, path: Path = FILE) -> str:
    """The sentence on a preset; that it was not judged where no figures are of these very accelerators."""
    found = _read(path).get(family, {}).get(preset)
    if found is None or list(found["accelerators"]) != acceleration.words:
        return NOT_JUDGED
    return Quality(**{**found, "accelerators": tuple(found["accelerators"])}).line


def write_quality(family: str, found: Mapping[str, Quality], path: Path = FILE) -> None:
    """Puts a family's figures into the file, by preset."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    rows = {**kept.get(family, {}), **{name: asdict(quality) for name, quality in found.items()}}
    write_text(path, json.dumps({**kept, family: rows}, indent=1) + "\n")
    _read.cache_clear()


@cache
def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))
