"""A row of the ladder: the figures of one way to make the clip, or the reason why there are none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ...common.atomic_file import atomic_file
from ...common.errors import InputError

MEASURED, INCOMPLETE, MISSING = "measured", "incomplete", "missing"
STATES = (MEASURED, INCOMPLETE, MISSING)

FIGURES: dict[str, str] = {
    "step_ms": "one denoiser call by device events: the median, milliseconds",
    "step_p95_over_median": "how far the slowest twentieth of the calls lies above the median, as a ratio",
    "step_samples": "how many calls those two were read off",
    "kernels_per_step": "kernels that one denoiser call runs on the GPU",
    "core_tflop": "floating-point operations of one denoiser call, in 10^12",
    "encode_cold_s": "conditioning of the first clip of a process, weights read from disk",
    "encode_s": "conditioning of a later clip",
    "denoise_s": "all steps",
    "decode_s": "latents to frames on the host",
    "write_s": "frames to an h264 file",
    "interpolate_s": "as many frames as a clip has to twice the rate, engines loaded; no part of a clip",
    "upscale_s": "the same frames to four times the side by a compact network, engine loaded; no part of a clip",
    "clip_cold_s": "the first clip ever, from the start of the process, builds included",
    "clip_warm_start_s": "the first clip of a new process, engines and caches on disk, from the start of the process",
    "clip_hot_s": "a later clip of the same process, picture to file",
    "frames_per_s": "frames of a hot clip by its seconds",
    "build_s": "compiling",
    "load_s": "a built engine of the denoiser in a new process; weights that it borrows are on the GPU already",
    "warm_import_s": "of the warm start: the interpreter and the libraries",
    "warm_open_s": "of the warm start: weights read and checked, engines loaded",
    "warm_encode_s": "of the warm start: conditioning, from the cache on disk where the way has one",
    "warm_denoise_s": "of the warm start: all steps",
    "warm_decode_s": "of the warm start: latents to frames",
    "warm_write_s": "of the warm start: frames to a file",
    "gpu_resident_encode_gib": "PyTorch's peak while encoding, all weights on the GPU",
    "gpu_resident_denoise_gib": "the same while denoising",
    "gpu_resident_decode_gib": "the same while decoding",
    "gpu_offloaded_denoise_gib": "PyTorch's peak while denoising, encoders off the GPU after conditioning",
    "gpu_offloaded_decode_gib": "the same while decoding",
    "gpu_resident_used_gib": "the GPU's own used memory, at its highest after a stage, all weights on the GPU",
    "gpu_offloaded_used_gib": "the same with the encoders off the GPU",
    "gpu_before_gib": "the GPU's own used memory before the process took any",
    "host_peak_gib": "peak host memory of the process",
    "build_host_peak_gib": "peak host memory of the largest process that compiled for it",
    "latents_cosine": "final latents against row 0: cosine",
    "latents_snr_db": "final latents against row 0: signal-to-noise ratio, dB",
    "latents_max_abs": "final latents against row 0: greatest difference",
    "frames_psnr_mean_db": "frames against row 0: PSNR, mean, dB",
    "frames_psnr_worst_db": "frames against row 0: PSNR of the worst frame, dB",
    "frames_ssim_mean": "frames against row 0: SSIM, mean",
    "frames_max_abs": "frames against row 0: greatest difference of a value in 0..1",
    "gpu_clock_mhz": "the GPU's clock right after the sampled calls",
    "gpu_power_w": "the GPU's power right after the sampled calls",
}
"""Every figure that a row may hold, and its meaning."""


@dataclass(frozen=True)
class Row:
    """One row. `reason` is a sentence on why the row is missing or incomplete; figures are those of `FIGURES`."""

    name: str
    title: str
    state: str = MISSING
    reason: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trace: str = ""
    """The end of the traceback, where something failed."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.figures) - set(FIGURES))
        if unknown or self.state not in STATES:
            raise InputError(f"A row has figures and a state that are known, found {unknown or self.state}.")

    def adding(self, figures: Mapping[str, float | None], notes: tuple[str, ...] = ()) -> Row:
        """The row with more figures, those that are None left out, and notes that it does not have yet."""
        known = {name: float(f"{value:.7g}") for name, value in figures.items() if value is not None}
        fresh = tuple(note for note in dict.fromkeys(notes) if note not in self.notes)
        return replace(self, figures={**self.figures, **known}, notes=self.notes + fresh)

    def peak_gib(self, residency: str) -> float | None:
        """The greatest of PyTorch's peaks over the stages, `resident` or `offloaded`."""
        values = [self.figures.get(f"gpu_{residency}_{stage}_gib") for stage in ("encode", "denoise", "decode")]
        known = [value for value in values if value is not None]
        return max(known) if known else None


def row_from_dict(data: Mapping[str, Any]) -> Row:
    """Rebuilds a row after JSON; raises InputError on anything that is none."""
    try:
        return Row(**{**data, "notes": tuple(data.get("notes", ()))})
    except TypeError as error:
        raise InputError(f"A row of the ladder is malformed: {error}.") from error


class RowFile:
    """A row that is written to a file at every change, so that a process that is ended leaves its figures."""

    def __init__(self, path: Path, row: Row) -> None:
        self.path = path
        self.row = row
        self._write()

    def add(self, figures: Mapping[str, float | None], *notes: str) -> None:
        """Keeps figures and notes."""
        self.row = self.row.adding(figures, notes)
        self._write()

    def close(self, state: str, reason: str = "", trace: str = "") -> None:
        """Sets the row's final state."""
        self.row = replace(self.row, state=state, reason=reason, trace=trace)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as temporary:
            temporary.write_text(json.dumps(asdict(self.row)), "utf-8")


def read_row(path: Path) -> Row | None:
    """The row in a file that `RowFile` wrote; None where there is none."""
    try:
        return row_from_dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, InputError):
        return None
