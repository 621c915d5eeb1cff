"""Rows of `bench frames` in a ComfyUI: the pack's nodes and the core's over the same frames and weights, by turns."""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ..common.pack_paths import INTERPOLATION, PACK
from ..pipeline.media.formats import VideoOptions
from ..pipeline.media.frames import StreamedClip
from ..pipeline.media.video import write_stream
from ..remote.comfyui.client import ComfyClient
from ..remote.comfyui.messages import Event
from ..remote.comfyui.server import ComfyServer, link_pack
from .live import Report
from .measured_child import tell
from .moving_frames import moving
from .upscale_models import MODELS

CLIP, FILM, SQUARE = "clip.mp4", "film.mp4", "square.mp4"
RATE = 24
LOAD, PARTS, BATCH, MODEL, CORE, OURS, SEEN = "1", "2", "3", "4", "5", "6", "7"
Prompt = dict[str, dict[str, Any]]


def fill(base: Path, rows: Collection[str], options: argparse.Namespace) -> None:
    """Puts the pack and what the rows of those names need into the server's folder: weights, videos."""
    from safetensors.torch import save_file

    for folder in ("input", "models/frame_interpolation", "models/upscale_models"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link_pack(PACK, base)
    whole, spare = (options.height, options.width), options.rounds + 1
    clips: dict[str, tuple[int, tuple[int, int]]] = {}
    if "interpolation" in rows:
        shutil.copyfile(INTERPOLATION, base / "models" / "frame_interpolation" / "pack.safetensors")
        clips[CLIP] = options.frames + spare, whole
    if "film" in rows:
        clips[FILM] = options.film, whole
    for name in (name for name in MODELS if name in rows):
        save_file(MODELS[name](), base / "models" / "upscale_models" / f"{name}.safetensors")
        clips[SQUARE] = options.upscale_frames + spare, (options.side, options.side)
    for name, (count, size) in clips.items():
        clip = StreamedClip(moving(count, *size), *size, count)
        write_stream(clip, base / "input" / name, VideoOptions("mp4-h264", RATE, 12))


def interpolate(server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    """Frames a second at twice the rate."""
    report.note(size=f"{options.width}x{options.height}, {options.frames} frames")
    made = {CORE: 2 * options.frames - 1, OURS: 2 * options.frames}
    _in_turn(server, report, options, "interpolation", made, _prompt)


def upscale(model: str, server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    """Frames a second of one of the `MODELS`."""
    made = {each: int(options.upscale_frames) for each in (CORE, OURS)}
    what = "upscale" if model == "compact" else f"{model}_upscale"
    _in_turn(server, report, options, what, made, partial(_upscale_prompt, model))


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
            tell(f"{what}, {'core' if name == CORE else 'ours'}, run {number}: {elapsed_s:.2f} s")
            if number:
                fps[name].append(made[name] / elapsed_s)
            else:
                report.note(**{f"core_{what}_first_s" if name == CORE else f"{what}_first_s": elapsed_s})
            if name == OURS:
                report.note(**{f"{what}_lines_{number}": lines})
        if number:
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


def watch_film(server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    """Streams a long video, and notes the growth of the server's memory from its first tenth to its last."""
    prompt = {
        LOAD: _node("LoadVideo", file=FILM),
        OURS: _ours(options.backend, frames=[LOAD, 0]),
        SEEN: _node("SaveVideo", video=[OURS, 1], filename_prefix="film", format="auto", codec="auto"),
    }
    held: dict[int, int] = {}
    """The most bytes held in each tenth of the film."""

    def hear(event: Event) -> None:
        if event.kind == "progress" and event.data.get("node") == OURS:
            tenth = 10 * event.data["value"] // max(event.data["max"], 1)
            if tenth not in held:
                tell(f"film, {10 * tenth} %: {resident_bytes(server.process.pid) / 2**20:.0f} MiB held")
            held[tenth] = max(held.get(tenth, 0), resident_bytes(server.process.pid))

    started = time.monotonic()
    result = ComfyClient(server.url).run(prompt, hear, timeout_s=options.film_minutes * 60)
    if result.status != "success" or not held:
        raise RuntimeError(f"Expected a video, found {result.status}: {result.error}; {server.log()[-2000:]}")
    grown = max(held.values()) - held[min(held)]
    report.note(film_frames=options.film, film_s=time.monotonic() - started, film_growth_mib=grown / 2**20)
    report.note(film_held_mib=[round(held[tenth] / 2**20) for tenth in sorted(held)])


def resident_bytes(pid: int) -> int:
    """Host memory that a process holds, in bytes; 0 where the system does not say."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return 0


ROWS: dict[str, Callable[[ComfyServer, Report, argparse.Namespace], None]] = {
    "interpolation": interpolate,
    **{name: partial(upscale, name) for name in MODELS},
    "film": watch_film,
}
"""What is measured in a ComfyUI, by the row's name."""
