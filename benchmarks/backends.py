"""The bundled model's clip through every backend that can run here, against eager PyTorch in fp32.

Same seed, same picture; frames compared as they leave the decoder, never as compressed video.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image

from ..common.device import default_device
from ..common.pack_paths import PICTURE
from ..engine_builder.backends.registry import BACKENDS
from ..engine_builder.store.store import EngineStore
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.media.image import rgb
from ..pipeline.models.registry import open_model
from ..pipeline.quality.similarity import MAX_DB, frames_similarity
from ..pipeline.request import ClipRequest
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.clip_sizes import clip_sizes
from ..runtime.demo_model import DemoModel, demo_model
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Row:
    """One backend in one precision: seconds by stage, and its frames against the reference's."""

    backend: str
    precision: str
    build_s: float
    encode_s: float
    denoise_s: float
    decode_s: float
    psnr_mean_db: float | None
    """None where the frames are equal, and noise is nothing."""
    psnr_worst_db: float | None
    ssim_mean: float

    @property
    def clip_s(self) -> float:
        """Seconds for one clip once engines are there."""
        return self.encode_s + self.denoise_s + self.decode_s


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench backends", description=__doc__)
    top.add_argument("--steps", type=int, default=20, metavar="N")
    top.add_argument("--out", type=Path, default=RESULTS / "backends.json", metavar="FILE")
    return top


def main(argv: Sequence[str]) -> int:
    """Runs every backend, prints a table and writes it as JSON."""
    options = parser().parse_args(argv)
    device = default_device()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(measure(demo_model(Path(folder)), options.steps, device, Path(folder)))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(_report(rows, options.steps, device), indent=1) + "\n", "utf-8")
    sys.stdout.write(_table(rows) + f"\n{options.out}\n")
    return 0


def measure(model: DemoModel, steps: int, device: torch.device, work: Path) -> Iterator[Row]:
    """A row for each backend and precision that runs on the device, the reference first."""
    reference: torch.Tensor | None = None
    for backend, precision in _ways(device):
        row, frames = _one(model, steps, EnginePolicy(backend, precision, "exact", "build"), device, work)
        reference = frames if reference is None else reference
        yield _compared(row, reference, frames)


def _ways(device: torch.device) -> list[tuple[str, str]]:
    """Eager fp32 first; half precision only where it is not emulated."""
    precisions = ("fp32",) if device.type == "cpu" else ("fp32", "fp16")
    usable = [name for name, backend in BACKENDS.items() if backend.availability(device).ok]
    ways = [(backend, precision) for precision in precisions for backend in usable]
    return sorted(ways, key=lambda way: way != ("eager", "fp32"))


def _one(
    model: DemoModel, steps: int, policy: EnginePolicy, device: torch.device, work: Path
) -> tuple[dict[str, float | str], torch.Tensor]:
    """Seconds of each stage of a second clip, the first having loaded everything, and its frames."""
    engines = EngineSet(open_model(model.folder), EngineStore(work / "engines"), policy, device)
    started = time.monotonic()
    engines.prepare(clip_sizes(engines.model, model.side, model.side, model.num_frames))
    seconds: dict[str, float | str] = {"backend": policy.backend, "precision": policy.precision}
    seconds["build_s"] = time.monotonic() - started
    frames = torch.empty(0)
    for run_steps in (1, steps):
        frames = _clip(engines, model, run_steps, seconds)
    return seconds, frames


def _clip(engines: EngineSet, model: DemoModel, steps: int, seconds: dict[str, float | str]) -> torch.Tensor:
    side = model.side
    request = ClipRequest(rgb(Image.open(PICTURE)), model.prompts[0], "", side, side, model.num_frames, model.fps)
    started = time.monotonic()
    plan = plan_clip(engines, request.size)
    conditioning = encode_clip(plan, request, ConditioningCache(None), _ignore)
    encoded = time.monotonic()
    denoising = Denoising(1, model.guidance_scale, SamplerSettings(steps))
    latents = sample_clip(plan_sampling(plan, denoising), conditioning, _ignore)
    denoised = time.monotonic()
    frames = decode_clip(plan, latents, model.num_frames, _ignore)
    seconds.update(encode_s=encoded - started, denoise_s=denoised - encoded, decode_s=time.monotonic() - denoised)
    return frames


def _compared(seconds: dict[str, float | str], reference: torch.Tensor, frames: torch.Tensor) -> Row:
    similarity = frames_similarity(reference, frames)
    values = {name: value if isinstance(value, str) else round(value, 3) for name, value in seconds.items()}
    return Row(
        **values,  # type: ignore[arg-type]
        psnr_mean_db=_finite(similarity["frames_psnr_mean_db"]),
        psnr_worst_db=_finite(similarity["frames_psnr_worst_db"]),
        ssim_mean=round(similarity["frames_ssim_mean"], 6),
    )


def _finite(decibels: float) -> float | None:
    return round(decibels, 2) if decibels < MAX_DB else None


def _report(rows: list[Row], steps: int, device: torch.device) -> dict[str, object]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": steps,
        "rows": [{**asdict(row), "clip_s": round(row.clip_s, 3)} for row in rows],
    }


def _table(rows: list[Row]) -> str:
    head = "backend      precision   build s  encode s  denoise s  decode s   clip s    PSNR dB   worst dB      SSIM"
    return "\n".join([head, *map(_line, rows)])


def _line(row: Row) -> str:
    mean, worst = ("equal" if value is None else f"{value:.2f}" for value in (row.psnr_mean_db, row.psnr_worst_db))
    return (
        f"{row.backend:<12} {row.precision:<9} {row.build_s:9.1f} {row.encode_s:9.2f} {row.denoise_s:10.2f} "
        f"{row.decode_s:9.2f} {row.clip_s:8.2f} {mean:>10} {worst:>10}  {row.ssim_mean:.6f}"
    )


def _ignore(*_: object) -> None:
    """Hears progress that nobody watches."""
