"""`run.py bench frames`: frames a second of the nodes after the clip, beside the core's own nodes in the same ComfyUI.

Both nodes get the same frames in memory and the same weights. Decibels of the interpolation network come from the
figures that its training wrote. Figures go into one flat JSON file; a figure without a measurement is null.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..common.errors import I2VError
from ..common.pack_paths import INTERPOLATION, PACK
from ..pipeline.media.formats import VideoOptions
from ..pipeline.media.frames import StreamedClip
from ..pipeline.media.video import write_stream
from ..remote.comfyui.client import ComfyClient
from ..remote.comfyui.messages import Event
from ..remote.comfyui.server import ComfyServer, find_comfyui, link_pack, not_found_reason, start_server
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .live import ARGUMENTS, Report
from .upscale_models import MODELS

RESULTS = Path(__file__).resolve().parent / "results" / "frames" / "figures.json"
NAMES = (
    "gap1_db", "gap3_db", "gap6_db", "interpolation_fps", "core_interpolation_fps", "upscale_fps", "core_upscale_fps",
    "two_phase_ratio",
)  # fmt: skip
"""The figures that this project is held to; the file may have others."""
CLIP, FILM, SQUARE = "clip.mp4", "film.mp4", "square.mp4"
RATE = 24
LOAD, PARTS, BATCH, MODEL, CORE, OURS, SEEN = "1", "2", "3", "4", "5", "6", "7"
Prompt = dict[str, dict[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Measures, and writes after each figure; 1 without a ComfyUI."""
    options = parser().parse_args(argv)
    host = find_comfyui()
    if host is None:
        sys.stderr.write(f"{not_found_reason()}\n")
        return 1
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    report = Report(options.out, NAMES, "frames.json")
    report.note(date=now(), machine=describe_machine(device), versions=describe_versions())
    report.note(commit=describe_commit(None), size=f"{options.width}x{options.height}, {options.frames} frames")
    report.note(**_decibels())
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        base = options.work or Path(temporary)
        try:
            _fill(base, options)
            with start_server(host, base, [*ARGUMENTS, *([] if device.type == "cuda" else ["--cpu"])]) as server:
                _measure(server, report, options)
        except (I2VError, OSError, RuntimeError) as error:
            sys.stderr.write(f"run.py bench frames: {error}\n")
            return 1
    return 0


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench frames", description=__doc__)
    add = top.add_argument
    add("--width", type=int, default=1920)
    add("--height", type=int, default=1080)
    add("--frames", type=int, default=48, metavar="N", help="frames of the clip that each node gets (%(default)s)")
    add("--rounds", type=int, default=3, metavar="N", help="runs of each node after the first, in turn (%(default)s)")
    add("--film", type=int, default=0, metavar="N", help="also stream a video of so many frames, and watch the memory")
    add("--upscale", default="", metavar="NAMES", help=f"also upscale, by commas: {', '.join(MODELS)}")
    add("--side", type=int, default=512, metavar="PIXELS", help="side of the frames that are upscaled (%(default)s)")
    add("--upscale-frames", type=int, default=16, metavar="N", help="frames that are upscaled (%(default)s)")
    add("--no-interpolation", action="store_true", help="leave that part out")
    add("--backend", default="auto")
    add("--work", type=Path, metavar="DIR", help="a folder for engines, kept; a temporary one otherwise")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="the JSON file of all figures (%(default)s)")
    return top


def _decibels() -> dict[str, float]:
    """The decibels of the weights in use, as their training measured them."""
    found = json.loads(INTERPOLATION.with_name("figures.json").read_text("utf-8"))
    return {name: found[name] for name in NAMES if name in found}


def moving(count: int, height: int, width: int) -> Iterator[torch.Tensor]:
    """Frames [height, width, 3] of waves of many lengths that go by: every part moves, no two frames are alike."""
    y, x = torch.linspace(0, height / 64, height)[:, None], torch.linspace(0, width / 64, width)
    for number in range(count):
        shift = number * 0.11
        waves = [torch.sin(k * (x * a + y * b) + k * shift) / k for k, a, b in ((1, 1, 0.3), (3, 0.7, 1), (7, 1, -0.6))]
        grey = sum(waves, torch.zeros(())) / 4 + 0.5
        yield torch.stack([grey, grey.flip(0), grey.flip(1)], dim=-1).clamp(0, 1)


def _fill(base: Path, options: argparse.Namespace) -> None:
    """Puts the pack, its weights for the core's loader, and the videos into the server's folder."""
    from safetensors.torch import save_file

    for folder in ("input", "models/frame_interpolation", "models/upscale_models"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link_pack(PACK, base)
    shutil.copyfile(INTERPOLATION, base / "models" / "frame_interpolation" / "pack.safetensors")
    for name in filter(None, options.upscale.split(",")):
        save_file(MODELS[name](), base / "models" / "upscale_models" / f"{name}.safetensors")
    whole, square = (options.height, options.width), (options.side, options.side)
    clips = ((CLIP, options.frames, whole), (FILM, options.film, whole), (SQUARE, options.upscale_frames, square))
    for name, frames, size in clips:
        if frames:
            count = frames if name == FILM else frames + options.rounds + 1
            clip = StreamedClip(moving(count, *size), *size, count)
            write_stream(clip, base / "input" / name, VideoOptions("mp4-h264", RATE, 12))


def _measure(server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    """Every pair of nodes, then the film."""
    if not options.no_interpolation:
        made = {CORE: 2 * options.frames - 1, OURS: 2 * options.frames}
        _in_turn(server, report, options, "interpolation", made, _prompt)
    for name in filter(None, options.upscale.split(",")):
        prefix = "upscale" if name == "compact" else f"{name}_upscale"
        made = {each: int(options.upscale_frames) for each in (CORE, OURS)}
        _in_turn(server, report, options, prefix, made, partial(_upscale_prompt, name))
    if options.film:
        _watch_film(server, report, options)


def _in_turn(
    server: ComfyServer,
    report: Report,
    options: argparse.Namespace,
    what: str,
    made: dict[str, int],
    prompt: Callable[[str, int, argparse.Namespace], Prompt],
) -> None:
    """Both nodes in turn, which make so many frames; the first run of each, which loads and builds, is noted apart."""
    fps: dict[str, list[float]] = {CORE: [], OURS: []}
    for number in range(options.rounds + 1):
        for name in (CORE, OURS):
            elapsed_s, lines = timed(server, prompt(name, number, options), name)
            if number:
                fps[name].append(made[name] / elapsed_s)
            else:
                report.note(**{f"core_{what}_first_s" if name == CORE else f"{what}_first_s": elapsed_s})
            if name == OURS:
                report.note(**{f"{what}_lines_{number}": lines})
    ours, core = statistics.median(fps[OURS]), statistics.median(fps[CORE])
    report.note(**{f"{what}_fps": ours, f"core_{what}_fps": core, f"{what}_times": ours / core})


def _prompt(name: str, number: int, options: argparse.Namespace) -> Prompt:
    """A prompt that ends with one of the nodes, over frames that no earlier prompt had."""
    frames = {
        LOAD: _node("LoadVideo", file=CLIP),
        PARTS: _node("GetVideoComponents", video=[LOAD, 0]),
        BATCH: _node("ImageFromBatch", image=[PARTS, 0], batch_index=number, length=options.frames),
        MODEL: _node("FrameInterpolationModelLoader", model_name="pack.safetensors"),
    }
    if name == CORE:
        node = _node("FrameInterpolate", interp_model=[MODEL, 0], images=[BATCH, 0], multiplier=2)
    else:
        node = _ours(options.backend, frames=[BATCH, 0], model=[MODEL, 0])
    return {**frames, name: node, SEEN: _node("PreviewAny", source=[name, 0])}


def _upscale_prompt(model: str, name: str, number: int, options: argparse.Namespace) -> Prompt:
    """As `_prompt`, for an upscale model."""
    frames = {
        LOAD: _node("LoadVideo", file=SQUARE),
        PARTS: _node("GetVideoComponents", video=[LOAD, 0]),
        BATCH: _node("ImageFromBatch", image=[PARTS, 0], batch_index=number, length=options.upscale_frames),
        MODEL: _node("UpscaleModelLoader", model_name=f"{model}.safetensors"),
    }
    core = _node("ImageUpscaleWithModel", upscale_model=[MODEL, 0], image=[BATCH, 0])
    settings = {"target": "model", "value": 2.0, "fps": float(RATE), "on_missing": "build", "backend": options.backend}
    ours = _node("I2VTRT_UpscaleVideo", frames=[BATCH, 0], upscale_model=[MODEL, 0], **settings)
    return {**frames, name: core if name == CORE else ours, SEEN: _node("PreviewAny", source=[name, 0])}


def _ours(backend: str, **inputs: Any) -> dict[str, Any]:
    settings = {"target": "factor", "value": 2.0, "fps": float(RATE), "on_missing": "build", "backend": backend}
    return _node("I2VTRT_InterpolateFrames", **settings, **inputs)


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def timed(server: ComfyServer, prompt: Prompt, name: str) -> tuple[float, tuple[str, ...]]:
    """Seconds that a node of the prompt ran, and its lines; raises RuntimeError for a prompt that fails."""
    times: dict[str, float] = {}
    last: list[str] = []

    def hear(event: Event) -> None:
        if event.kind == "executing":
            if last:
                times[last.pop()] += time.monotonic()
            node = event.data.get("node")
            if node is not None:
                times[node] = -time.monotonic()
                last.append(node)

    result = ComfyClient(server.url).run(prompt, hear, timeout_s=900)
    if result.status != "success" or name not in times:
        raise RuntimeError(f"Expected frames, found {result.status}: {result.error}; {server.log()[-2000:]}")
    return times[name], tuple(result.outputs.get(name, {}).get("text", ()))


def _watch_film(server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    """Streams a long video, and notes the growth of the server's memory from its first tenth to its last."""
    prompt = {
        LOAD: _node("LoadVideo", file=FILM),
        OURS: _ours(options.backend, frames=[LOAD, 0]),
        SEEN: _node("SaveVideo", video=[OURS, 1], filename_prefix="film", format="auto", codec="auto"),
    }
    held: list[tuple[int, int]] = []

    def hear(event: Event) -> None:
        if event.kind == "progress" and event.data.get("node") == OURS:
            held.append((event.data["value"], resident_bytes(server.process.pid)))

    started = time.monotonic()
    result = ComfyClient(server.url).run(prompt, hear, timeout_s=1800)
    if result.status != "success" or not held:
        raise RuntimeError(f"Expected a video, found {result.status}: {result.error}")
    tenth = [size for value, size in held if value <= 2 * options.film // 10]
    grown = max(size for _, size in held) - max(tenth or [held[0][1]])
    report.note(film_frames=options.film, film_s=time.monotonic() - started, film_growth_mib=grown / 2**20)


def resident_bytes(pid: int) -> int:
    """Host memory that a process holds, in bytes; 0 where the system does not say."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0
