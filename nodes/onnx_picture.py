"""I2V ONNX Picture."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import Input, io

from ..common.errors import I2VError, InputError
from ..pipeline.pictures.contract import AUTO, BGR, LAYOUTS, RANGES_IN, RANGES_OUT, RGB
from ..pipeline.pictures.picture_filter import FITS, SQUASH, Wishes
from ..runtime.engines.policy import MISS_POLICIES
from ..runtime.filters.onnx_picture import COMPILED_BY, EAGER, backend_for, picture_filter, served_by
from .frames import engines_of, fps_input, frames_input
from .host import memory, ui
from .host.onnx_files import onnx_file, onnx_files, picture_networks
from .host.video import collected, footage
from .inputs import CATEGORY, advanced, sockets, verdict
from .model_loader import stat_of

NONE = "put an ONNX file into models/onnx"


class OnnxPicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_OnnxPicture",
            display_name="I2V ONNX Picture",
            category=CATEGORY,
            description="Runs a picture network of models/onnx over frames: restoring, cutting out, depth. What the "
            "file takes and gives is found by trying, and told on the node.",
            search_aliases=["onnx", "background removal", "rmbg", "birefnet", "u2net", "restore", "depth", "segment"],
            inputs=[
                frames_input(),
                io.Combo.Input(
                    "file",
                    options=sorted(onnx_files()) or [NONE],
                    tooltip="A network from pictures to pictures or masks. The first use of a file looks at it in a "
                    "process of its own, for seconds.",
                ),
                fps_input(),
                io.Combo.Input(
                    "on_missing",
                    options=list(MISS_POLICIES),
                    default=AUTO,
                    tooltip="No engine fits. auto, build: one is built now. eager: the file runs by ONNX Runtime on "
                    "the CPU. stop: an error.",
                ),
                io.Combo.Input(
                    "backend",
                    options=[AUTO, *COMPILED_BY, EAGER],
                    default=AUTO,
                    tooltip="auto: on a GPU the faster that is installed, tensorrt or onnxruntime with CUDA, and on a "
                    "CPU the file as it is, which is eager.",
                ),
                io.Float.Input(
                    "number",
                    default=0.5,
                    min=-1000.0,
                    max=1000.0,
                    step=0.01,
                    optional=True,
                    tooltip="For a network that takes a number too, such as how faithful a restored face is.",
                ),
                io.AnyType.Input(
                    "more",
                    optional=True,
                    tooltip="For a network that takes a second picture, or a tensor such as an embedding.",
                ),
                *_by_hand(),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The new frames of an IMAGE; none of a VIDEO."),
                io.Mask.Output(display_name="mask", tooltip="The masks of an IMAGE, where the network gives one."),
                io.Video.Output(display_name="video", tooltip="The new frames with the sound, for any VIDEO node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, file: Any = None, backend: Any = None) -> bool | str:
        if file is not None:
            answer = verdict(lambda: onnx_file(file))
            if answer is not True:
                return answer
        return True if backend is None else verdict(lambda: memory.check_backend(backend))

    @classmethod
    def fingerprint_inputs(cls, file: str, **_: Any) -> Any:
        """Changes with the file."""
        try:
            stat = stat_of(onnx_file(file))
        except (OSError, I2VError):
            return float("nan")
        return f"{file} {stat.st_size} {stat.st_mtime_ns}"

    @classmethod
    @sockets(frames=(torch.Tensor, Input.Video))
    def execute(
        cls,
        frames: Any,
        file: str,
        fps: float,
        on_missing: str,
        backend: str,
        number: float = 0.5,
        more: Any = None,
        layout: str = AUTO,
        range_in: str = AUTO,
        range_out: str = AUTO,
        colours: str = RGB,
        fit: str = SQUASH,
        output: str = "",
    ) -> io.NodeOutput:
        started = time.monotonic()
        with ui.sentences():
            source = footage(frames, fps)
            progress = ui.Progress(cls.hidden.unique_id, source.num_frames)
            progress.say(f"looking at {file}")
            networks = picture_networks(onnx_file(file), layout, output.strip(), range_in, range_out)
            policy = "build" if on_missing == AUTO else on_missing  # without an engine the CPU would have to do
            backend = backend_for(backend, memory.device())
            engines = engines_of(networks, networks.contract.precision, backend, policy, weights="inside")

            wishes = Wishes(fit, colours, number, _tensor(more))
            run = picture_filter(engines, source.height, source.width, wishes)
            masks: list[torch.Tensor] = []
            made = _pictures(run(source.frames), masks, keep=not source.is_video)
            height, width = run.size(source.height, source.width)
            images, video = collected(
                replace(source, frames=made, height=height, width=width),
                partial(progress.count, "picture network: frame"),
            )
        took = f"{run.report.made} frames, {run.report.batch} at once, {time.monotonic() - started:.2f} s"
        lines = [networks.contract.describe(), took, served_by(engines), *engines.take_notes()]
        progress.say("\n".join(lines))
        return io.NodeOutput(images, torch.stack(masks) if masks else None, video, ui=ui.text_ui(lines))


def _by_hand() -> list[io.Input]:
    """What is found by trying, for a file that lies about itself or about which nothing shows."""
    return [
        advanced(given)
        for given in (
            io.Combo.Input(
                "layout",
                options=list(LAYOUTS),
                default=AUTO,
                optional=True,
                tooltip="Order of the input's dimensions: number, channels, height, width, or channels last.",
            ),
            io.Combo.Input(
                "range_in",
                options=list(RANGES_IN),
                default=AUTO,
                optional=True,
                tooltip="Numbers that the network wants for black to white. A guess is told as such on the node.",
            ),
            io.Combo.Input(
                "range_out",
                options=list(RANGES_OUT),
                default=AUTO,
                optional=True,
                tooltip="Numbers that it gives. sigmoid: of logits. min..max: stretched as the first frames are, for "
                "depth.",
            ),
            io.Combo.Input(
                "colours", options=[RGB, BGR], default=RGB, optional=True, tooltip="Order of the network's channels."
            ),
            io.Combo.Input(
                "fit",
                options=list(FITS),
                default=SQUASH,
                optional=True,
                tooltip="Frames of another shape than a network of one size. pad: in proportion, with a border.",
            ),
            io.String.Input(
                "output",
                default="",
                optional=True,
                tooltip="Name of the output, of several. Empty: the first that is a picture or a mask.",
            ),
        )
    ]


def _tensor(more: Any) -> torch.Tensor | None:
    """The tensor behind a socket of any kind; raises InputError for what is none."""
    if more is None or isinstance(more, torch.Tensor):
        return more
    raise InputError(f"Expected a picture or a tensor as more, found a {type(more).__name__}.")


def _pictures(frames: Iterable[torch.Tensor], masks: list[torch.Tensor], *, keep: bool) -> Iterator[torch.Tensor]:
    """Frames [height, width, 3] of what the network gives; one channel, or a fourth one, is kept as a mask."""
    for frame in frames:
        if keep and frame.shape[-1] != 3:
            masks.append(frame[..., -1])
        yield frame.expand(-1, -1, 3) if frame.shape[-1] == 1 else frame[..., :3]
