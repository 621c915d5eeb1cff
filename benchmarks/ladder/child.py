"""The process that one variant is measured in: it may crash, run out of memory or be ended, and the ladder goes on.

Its figures are in files, one for each row, that the ladder reads when the process has ended.
"""

from __future__ import annotations

import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from ...common.errors import I2VError
from ...pipeline.media.formats import VideoOptions
from ...pipeline.media.video import write_video
from .after_clip import interpolate, upscale
from .engine_way import EngineWay
from .job import Job
from .measure import (
    StageClock,
    count_kernels,
    free_memory,
    gpu_before,
    gpu_state,
    host_peaks,
    sample_ms,
    step_figures,
)
from .order import Order, order_from_json
from .reference import against_reference, save_reference
from .row import INCOMPLETE, MEASURED, MISSING, RowFile
from .stock_way import StockWay
from .variants import EAGER, ENGINES
from .way import Clip, Way

HOT_CLIPS = 3
HOT_SECONDS = 12.0
"""Hot clips are repeated up to `HOT_CLIPS` times or `HOT_SECONDS` seconds; the median one is kept."""
MEMORY_STEPS = 2
TRACE_CHARS = 2000
_REMAINING = re.compile(r" \([^)]* left\)")
"""Remaining time in the stage names of builds, which changes all the time."""


def main(path: Path) -> int:
    """Carries out the file's order; returns 0, or 1 for a row that could not be finished, which has the reason."""
    logging.basicConfig(level=logging.INFO)
    order = order_from_json(path.read_text("utf-8"))
    if order.kind == "checkpoint":
        from ...pipeline.dummies.full_size import write_full_checkpoint

        write_full_checkpoint(Path(order.job.folder), order.job.torch_device, order.job.seed)
        return 0
    if order.kind == "sweep":
        from .sweep import run_sweep

        return run_sweep(order, lambda text: tell(order, text))
    climb = _warm if order.kind == "warm" else _climb
    return climb(order)


def tell(order: Order, text: str) -> None:
    """Prints a line of progress."""
    sys.stdout.write(f"[{time.time() - order.began_at:6.1f} s]   {order.variant.name}: {text}\n")
    sys.stdout.flush()


def _climb(order: Order) -> int:
    """Every row of the variant; a second row is the same in a CUDA graph."""
    first, *graph = [RowFile(order.rows / f"{row.name}.json", row) for row in order.variant.rows]
    way: list[Way] = []

    def plain() -> None:
        first.add(gpu_before(order.job.torch_device))
        tell(order, "loading and building")
        way.append(_way(order, cached=False))
        _measure(order, way[0], first)

    def captured() -> None:
        tell(order, "capturing a CUDA graph")
        assert isinstance(way[0], StockWay)  # noqa: S101 - only torch.compile has a second row
        way[0].capture()
        graph[0].add({}, f"Compiled by {first.row.name}, whose first clip is the cold one.")
        _measure_hot(order, way[0], graph[0])

    done = _guarded(order, first, plain)
    for row in graph:
        if done:
            done = _guarded(order, row, captured)
        else:
            row.close(MISSING, f"{first.row.name} did not end well: {first.row.reason}")
    return 0 if done else 1


def _warm(order: Order) -> int:
    """The first clip of a process that finds engines and caches on disk."""
    file = RowFile(order.rows / f"{order.variant.name}.warm.json", order.variant.rows[0])

    def run() -> None:
        imported_at = time.time()
        way = _way(order, cached=True)
        load_s = way.load()
        opened_at = time.time()
        _, clock = _clip(order, way, order.job.steps, file)
        file.add(
            {
                "clip_warm_start_s": time.time() - order.started_at,
                "load_s": load_s if order.variant.way == ENGINES else None,
                "warm_import_s": imported_at - order.started_at,
                "warm_open_s": opened_at - imported_at,
                **{f"warm_{stage}_s": elapsed_s for stage, elapsed_s in clock.seconds.items()},
            }
        )

    return 0 if _guarded(order, file, run) else 1


def _guarded(order: Order, file: RowFile, run: Callable[[], None]) -> bool:
    """Whether the run succeeded; if not, the row has the reason, and keeps its earlier figures."""
    try:
        run()
    except Exception as error:  # any error ends this row only
        text = _sentence(error)
        tell(order, f"failed: {text}")
        file.close(INCOMPLETE if file.row.figures else MISSING, text, traceback.format_exc()[-TRACE_CHARS:])
        logging.getLogger(__name__).exception("%s", order.variant.name)
        return False
    file.close(MEASURED)
    return True


def _way(order: Order, *, cached: bool) -> Way:
    if order.variant.way != ENGINES:
        return StockWay(order.job, order.variant)
    stages: list[str] = []

    def report(stage: str, _: float) -> None:
        stage = _REMAINING.sub("", stage)
        if stage not in stages:
            stages.append(stage)
            tell(order, stage)

    return EngineWay(order.job, order.variant, report, cached=cached)


def _measure(order: Order, way: Way, file: RowFile) -> None:
    """A row from nothing: build, first clip, similarity, then everything that is measured hot."""
    file.add({"build_s": way.build()}, *way.notes())
    clip, clock = _clip(order, way, order.job.steps, file)
    file.add({"clip_cold_s": time.time() - order.started_at, "encode_cold_s": clock.seconds["encode"]}, *way.notes())
    tell(order, f"first clip after {file.row.figures['clip_cold_s']:.1f} s")
    if order.variant.is_reference:
        save_reference(order.job, clip)
    else:
        _compare(order.job, clip, file)
    if isinstance(way, StockWay) and order.variant.is_reference and _seconds(clock) > HOT_SECONDS:
        _keep_only_clip(order, way, file, clock)
    else:
        _measure_hot(order, way, file, compared=True)


def _keep_only_clip(order: Order, way: StockWay, file: RowFile, clock: StageClock) -> None:
    """Row 0 is so slow that its one clip, after one step to warm up, is the hot one too."""
    file.add({}, "Its one clip came after one step to warm up, and is its hot one too.")
    file.add({**_hot_figures(order.job, [clock]), **_memory("resident", clock), **step_figures(way.step_ms())})
    file.add(gpu_state(way.device))
    _measure_rest(order, way, file)


def _measure_hot(order: Order, way: Way, file: RowFile, *, compared: bool = False) -> None:
    started = time.monotonic()
    clip, clock = _clip(order, way, order.job.steps, file)
    clocks = [clock]
    while len(clocks) < HOT_CLIPS and time.monotonic() - started < HOT_SECONDS:
        clocks.append(_clip(order, way, order.job.steps, file)[1])
    file.add(_hot_figures(order.job, clocks), *way.notes())
    if not compared:
        _compare(order.job, clip, file)
    count = order.samples
    file.add(step_figures(sample_ms(way.step(), count, way.device)))
    file.add(gpu_state(way.device))
    tell(order, f"{file.row.figures['step_ms']:.2f} ms a step, {file.row.figures['clip_hot_s']:.2f} s a clip")
    if order.after_clip and order.variant.goes_on:
        _optional(file, "Interpolation", lambda: interpolate(order.job, order.variant))
        _optional(file, "Upscaling", lambda: upscale(order.job, order.variant))
    if way.device.type == "cuda":
        _optional(file, "Memory", lambda: _memory("resident", _memory_clip(order, way, file)))
    _measure_rest(order, way, file)


def _measure_rest(order: Order, way: Way, file: RowFile) -> None:
    """Measures the figures that may disturb others, and so come last."""
    file.add(host_peaks())
    if isinstance(way, EngineWay) and order.variant.name == EAGER:
        _optional(file, "Operations", lambda: {"core_tflop": way.core_tflop()})
    _optional(file, "Kernels", lambda: {"kernels_per_step": count_kernels(way.step(), way.device)})
    if way.device.type == "cuda":
        _optional(file, "Memory", lambda: _memory("offloaded", _memory_clip(order, way, file, offload=True)))


def _optional(file: RowFile, what: str, measure: Callable[[], Mapping[str, float | None]]) -> None:
    """Adds figures, or a note that they cannot be measured: the row is valid without them."""
    try:
        file.add(measure())
    except Exception as error:  # any error of a profiler or of a full memory
        file.add({}, f"{what} could not be measured: {_sentence(error)}")


def _memory_clip(order: Order, way: Way, file: RowFile, *, offload: bool = False) -> StageClock:
    free_memory(way.device)
    return _clip(order, way, MEMORY_STEPS, file, offload=offload)[1]


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip() or 'no reason given'}".splitlines()[0][:400]


def _clip(order: Order, way: Way, steps: int, file: RowFile, *, offload: bool = False) -> tuple[Clip, StageClock]:
    """A clip, written to a file, and its stages."""
    clock = StageClock(way.device)
    clip = way.clip(steps, clock.mark, offload=offload)
    video = order.job.work_folder / "videos" / f"{file.row.name}.mp4"
    video.parent.mkdir(parents=True, exist_ok=True)
    try:
        write_video(clip.frames, video, VideoOptions("mp4-h264", float(order.job.fps)))
        clock.mark("write")
    except (I2VError, ImportError) as error:
        file.add({}, f"No file was written, and a clip's seconds are without that: {error}")
    return clip, clock


def _compare(job: Job, clip: Clip, file: RowFile) -> None:
    figures, notes = against_reference(job, clip)
    file.add(figures, *notes)


def _hot_figures(job: Job, clocks: list[StageClock]) -> dict[str, float]:
    """The stages of the median clip."""
    middle = sorted(clocks, key=_seconds)[len(clocks) // 2]
    stages = {f"{name}_s": elapsed_s for name, elapsed_s in middle.seconds.items()}
    return {**stages, "clip_hot_s": _seconds(middle), "frames_per_s": job.num_frames / _seconds(middle)}


def _seconds(clock: StageClock) -> float:
    return sum(clock.seconds.values())


def _memory(residency: str, clock: StageClock) -> dict[str, float | None]:
    """The GPU's memory by stage; None for each on a CPU."""
    stages = ("encode", "denoise", "decode") if residency == "resident" else ("denoise", "decode")
    peaks: dict[str, float | None] = {f"gpu_{residency}_{stage}_gib": clock.peak_gib.get(stage) for stage in stages}
    used = max((clock.used_gib[stage] for stage in stages if stage in clock.used_gib), default=None)
    return {**peaks, f"gpu_{residency}_used_gib": used}
