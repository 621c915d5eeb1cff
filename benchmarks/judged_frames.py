"""Rows of `bench frames` that need no ComfyUI: the bundled model's clips after interpolation and in two phases, by its
own judge, and two phases at a published size."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..common.device import default_device
from ..common.errors import InputError
from ..common.pack_paths import BUNDLED, INTERPOLATION
from ..engine_builder.store.store import EngineStore
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.dummies.full_size import FULL_SIZES
from ..pipeline.filters.timing import by_factor
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest
from ..runtime.clip_plan import Denoising
from ..runtime.engines.engine_set import Engines, EngineSet
from ..runtime.engines.policy import EnginePolicy
from ..runtime.engines.presets import parse_presets
from ..runtime.filters.interpolate import interpolation
from ..runtime.filters.networks import RifeNetworks
from .clip_stages import build_report, checkpoint_at, picture
from .evaluation.clips import BUNDLED_GUIDANCE, BUNDLED_SIZE, JudgedClip, bundled_clips, motion_of
from .evaluation.measure import figures_of
from .live import Report
from .measured_child import tell
from .two_phases import Made, Phases, by_turns, in_one, seconds

MOTIONS = 4
"""Motions of the judged clips, which come in turn."""
PUBLISHED, PUBLISHED_GUIDANCE, PUBLISHED_FPS = "i2vgen-xl-random", 9.0, 16
Interpolate = Callable[[Tensor], Tensor]
"""Frames [n, height, width, 3] -> [2 n - 1, height, width, 3], one between each two."""


def warping(report: Report, options: argparse.Namespace) -> None:
    """Warping errors of the bundled model's clips, before and after interpolation to twice the rate."""
    engines, between = _engines(BUNDLED, options), _interpolation(options)
    phases, rows = Phases(BUNDLED_SIZE, BUNDLED_SIZE, 1.0), []
    for clip in _clips(options):
        frames = in_one(engines, clip.request, _denoising(clip, options), phases).frames
        rows.append(warping_errors(frames, between(frames)))
        tell(f"{clip.name}: {rows[-1]}")
        report.note(warping_clips=len(rows), warping_steps=options.steps, **_means(rows))


def warping_errors(frames: Tensor, smooth: Tensor) -> dict[str, float]:
    """Mean difference of neighbours once their motion is undone, of frames and of the same at twice the rate.

    `between` is that of the new frames alone, which follow each other at the old rate, so that it is compared with
    `clip`; `blend` is theirs where each is the mean of its neighbours.
    """
    shown = {
        "clip": frames, "smooth": smooth, "between": smooth[1::2], "blend": (frames[:-1] + frames[1:]) / 2,
    }  # fmt: skip
    return {f"{name}_warping_error": motion_of(found).warping_error for name, found in shown.items()}


def bundled_phases(report: Report, options: argparse.Namespace) -> None:
    """The bundled model in two phases: seconds, and what its judge says of both ways."""
    engines, phases, clips = _engines(BUNDLED, options), _phases(options.bundled_sizes, options), _clips(options)
    report.note(bundled_phases=_words(phases, options))
    orders = [(clip.request, _denoising(clip, options)) for clip in clips]
    times: list[dict[str, float]] = []
    judged: list[dict[str, float]] = []
    for clip, made in zip(clips, by_turns(engines, orders, phases), strict=True):
        times.append({name: each.elapsed_s for name, each in made.items()})
        row = {f"{name}_{key}": value for name, each in made.items() for key, value in _judged(each, clip).items()}
        judged.append(row)
        tell(f"{clip.name}: {row}")
        found = {**seconds(times), **_means(judged)}
        report.note(
            bundled_phases_clips=len(times),
            bundled_phases_steps=options.steps,
            **{f"bundled_{name}": value for name, value in found.items()},
        )


def published_phases(report: Report, options: argparse.Namespace) -> None:
    """I2VGen-XL of the published size with random weights in two phases: seconds."""
    folder = options.checkpoints / (f"{PUBLISHED}-tiny" if options.tiny else PUBLISHED)
    checkpoint_at(folder, FULL_SIZES[PUBLISHED], default_device(), tiny=options.tiny)
    phases = _phases(options.sizes, options)
    report.note(phases=_words(phases, options))
    request = ClipRequest(picture(), "a red boat drifts to the right", "", *phases.large, PUBLISHED_FPS)
    order = request, Denoising(0, PUBLISHED_GUIDANCE, SamplerSettings(options.steps))
    times: list[dict[str, float]] = []
    for made in by_turns(_engines(folder, options), [order] * options.rounds, phases):
        times.append({name: each.elapsed_s for name, each in made.items()})
        found = seconds(times)
        ratio = found.pop("two_phase_ratio")
        report.note(**found, **({} if options.tiny else {"two_phase_ratio": ratio}))


def _judged(made: Made, clip: JudgedClip) -> dict[str, float]:
    """What the judge says of a clip, at the size that the bundled model is judged at."""
    side = (BUNDLED_SIZE.height, BUNDLED_SIZE.width)
    small = torch.nn.functional.interpolate(made.frames.movedim(-1, 1), side, mode="area").movedim(1, -1)
    found = figures_of(small, clip, None)
    return {"right_percent": 100.0 * found["right"], "warping_error": found["warping_error"]}


def _clips(options: argparse.Namespace) -> list[JudgedClip]:
    if options.clips < 1:
        raise InputError(f"Expected at least one clip to judge, found {options.clips}.")
    return bundled_clips(-(-options.clips // MOTIONS))[: options.clips]


def _denoising(clip: JudgedClip, options: argparse.Namespace) -> Denoising:
    return Denoising(clip.seed, BUNDLED_GUIDANCE, SamplerSettings(options.steps))


def _engines(folder: Path, options: argparse.Namespace) -> EngineSet:
    policy, store = EnginePolicy(options.backend, shapes="exact"), EngineStore(options.store)
    return EngineSet(open_model(folder), store, policy, default_device(), report=build_report())


def _interpolation(options: argparse.Namespace) -> Interpolate:
    """The pack's own network, over the engines that the backend has."""
    policy, store = EnginePolicy(options.backend, shapes="exact"), EngineStore(options.store)
    engines = Engines(RifeNetworks(INTERPOLATION), store, policy, default_device(), report=build_report())

    def between(frames: Tensor) -> Tensor:
        _, height, width, _ = frames.shape
        made: Iterator[Tensor] = interpolation(engines, by_factor(2), height, width, cut=0.0)(frames)
        return torch.stack(list(made))[: 2 * len(frames) - 1]  # the last one is held

    return between


def _phases(sizes: str, options: argparse.Namespace) -> Phases:
    found = parse_presets(sizes)
    if len(found) != 2:
        raise InputError(f"Expected a small and a large size such as 576x320x16,1280x704x16, found {sizes!r:.80}.")
    return Phases(*found, options.strength)


def _words(phases: Phases, options: argparse.Namespace) -> str:
    return f"{phases.small.words}, then {phases.large.words}; {options.steps} steps, strength {phases.strength:g}"


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
