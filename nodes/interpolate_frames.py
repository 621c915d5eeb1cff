"""I2V Interpolate Frames."""

from __future__ import annotations

import time
from dataclasses import replace
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from comfy_api.latest import Input, io

from ..common.errors import InputError
from ..pipeline.filters.interpolation import CUT, Report
from ..pipeline.filters.timing import Timing, by_count, by_factor, by_rate
from ..runtime.filters.interpolate import interpolation
from ..runtime.filters.networks import INTERPOLATION, RifeNetworks
from .frames import engines_of, fps_input, frames_input
from .host import memory, ui
from .host.interpolation_model import network_file
from .host.video import Footage, collected, footage
from .inputs import CATEGORY, advanced, backend_input, on_missing_input, sockets, verdict

InterpolationModel = io.Custom("INTERP_MODEL")
"""ComfyUI's own type: a `ModelPatcher` over a frame interpolation network."""

FACTOR, RATE, COUNT = "factor", "fps", "frames"
MOST_CUTS = 12
"""Cuts that the node names."""


class InterpolateFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_InterpolateFrames",
            display_name="I2V Interpolate Frames",
            category=CATEGORY,
            description="Makes frames between frames: smoother motion, or another frame rate. Cuts stay cuts, sound "
            "stays, and a VIDEO is read and written frame by frame.",
            search_aliases=["rife", "film", "frame interpolation", "slow motion", "smooth", "vfi", "fps"],
            inputs=[
                frames_input(),
                io.Combo.Input(
                    "target",
                    options=[FACTOR, RATE, COUNT],
                    default=FACTOR,
                    tooltip="Meaning of value. factor: so many new frames for each. fps: so many in a second. frames: "
                    "so many in all.",
                ),
                io.Float.Input(
                    "value",
                    default=2.0,
                    min=0.01,
                    max=1_000_000.0,
                    step=0.01,
                    tooltip="The factor, frames per second or number of frames; 2.5 and 23.976 work too.",
                ),
                fps_input(),
                on_missing_input(),
                backend_input(),
                InterpolationModel.Input(
                    "model",
                    optional=True,
                    tooltip="From Load Frame Interpolation Model, RIFE 4.25 or later. Without: the pack's own, which "
                    "learnt from made-up clips.",
                ),
                advanced(
                    io.Float.Input(
                        "cut",
                        default=CUT,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip="A cut lies where two frames are less alike than this; 0 looks for none.",
                    )
                ),
                advanced(
                    io.Boolean.Input(
                        "drop_repeats",
                        default=False,
                        optional=True,
                        tooltip="Drawings held for two or three frames move evenly.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The new frames of an IMAGE; none of a VIDEO."),
                io.Video.Output(display_name="video", tooltip="The new frames with the sound, for any VIDEO node."),
                io.Float.Output(display_name="fps", tooltip="Frames per second now."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, backend: Any = None) -> bool | str:
        return True if backend is None else verdict(lambda: memory.check_backend(backend))

    @classmethod
    @sockets(frames=(torch.Tensor, Input.Video))
    def execute(
        cls,
        frames: Any,
        target: str,
        value: float,
        fps: float,
        on_missing: str,
        backend: str,
        model: Any = None,
        cut: float = CUT,
        drop_repeats: bool = False,
    ) -> io.NodeOutput:
        started = time.monotonic()
        with ui.sentences():
            source = footage(frames, fps)
            timing = _timing(source, target, value)
            networks = RifeNetworks(network_file(model))
            precision, owner = memory.fitting_precision("auto"), getattr(model, "model", None)
            engines = engines_of(networks, precision, backend, on_missing, owner=owner)
            expected = timing.length(source.num_frames)
            progress = ui.Progress(cls.hidden.unique_id, expected)
            progress.say("interpolate: loading")
            run = interpolation(
                engines, timing, source.height, source.width, cut=cut, drop_repeats=drop_repeats,
            )  # fmt: skip
            rate = source.rate / timing.step

            smooth = replace(source, frames=run(source.frames), rate=rate, num_frames=expected)
            made, video = collected(smooth, partial(progress.count, "interpolate: frame"))
        summary = _summary(source, rate, run.report, time.monotonic() - started)
        lines = [summary, *_cuts(run.report), engines.describe(INTERPOLATION), *engines.take_notes()]
        progress.say("\n".join(lines))
        return io.NodeOutput(made, video, float(rate), ui=ui.text_ui(lines))


def _timing(source: Footage, target: str, value: float) -> Timing:
    if target == RATE:
        return by_rate(source.rate, value)
    if target == COUNT:
        return by_count(source.num_frames, round(value))
    if target != FACTOR:
        raise InputError(f"Expected a target of {FACTOR}, {RATE} or {COUNT}, found {target!r:.40}.")
    return by_factor(value)


def _summary(source: Footage, rate: Fraction, report: Report, elapsed_s: float) -> str:
    return (
        f"{source.num_frames} frames at {float(source.rate):g} fps to {float(rate):g} fps: {report.made} made, "
        f"{report.batch} at once, {elapsed_s:.2f} s"
    )


def _cuts(report: Report) -> list[str]:
    """Lines on cuts and repeats, where there are any."""
    named = ", ".join(map(str, report.cuts[:MOST_CUTS])) + (", ..." if len(report.cuts) > MOST_CUTS else "")
    lines = [f"{len(report.cuts)} cuts, before frames {named}"] if report.cuts else []
    return lines + ([f"{report.repeated} frames repeated the one before"] if report.repeated else [])
