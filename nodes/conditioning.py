"""I2V Conditioning."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..common.errors import InputError
from ..pipeline.conditioning import (
    MAX_FPS,
    MAX_FRAMES,
    MAX_MOTION,
    MAX_NOISE_AUG,
    MAX_SEED,
    check_request,
)
from ..pipeline.conditioning import Conditioning as Encoded
from ..pipeline.media.image import picture_from_tensor
from ..pipeline.request import ClipRequest
from ..runtime.clip import encode_clip
from ..runtime.clip_plan import plan_clip
from ..runtime.engines.engine_set import EngineSet
from .host import folders, ui
from .host.peak_memory import PeakMemory
from .inputs import CATEGORY, Conditioning, Model, advanced, sockets
from .limits import MostFloat, side_input

STOP, SHRINK = "stop", "shrink"


class I2VConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_Conditioning",
            display_name="I2V Conditioning",
            category=CATEGORY,
            description="Encodes picture and prompts once per clip. The result is kept by its content, in memory and "
            "on disk, so that the same inputs are never encoded twice.",
            search_aliases=["encode prompt", "clip text", "image encode", "i2v conditioning"],
            inputs=[
                Model.Input("model", tooltip="From the Model Loader or the Engine Loader."),
                io.Image.Input(
                    "image", tooltip="One picture; it is scaled to cover the size and cropped in the middle."
                ),
                io.String.Input("prompt", multiline=True, default="", tooltip="What should happen, in English."),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    default="distorted, discontinuous, ugly, blurry, low resolution, motionless, static",
                    tooltip="What should not. It counts only while guidance is above 1.",
                ),
                side_input("width", 512, "Pixels, a multiple of 8."),
                side_input("height", 512, "Pixels, a multiple of 8."),
                io.Int.Input(
                    "num_frames",
                    default=16,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames in the clip. Wan makes one and then 4 at a time: 81, or 121 for TI2V. "
                    "DynamiCrafter makes 16.",
                ),
                io.Int.Input(
                    "fps",
                    default=16,
                    min=1,
                    max=MAX_FPS,
                    tooltip="The frame rate that the model is told to animate for: less gives more motion. For "
                    "DynamiCrafter at 256 it is a stride from 1 to 6, of which more does.",
                ),
                advanced(
                    io.Int.Input(
                        "motion_bucket_id",
                        default=ClipRequest.motion_bucket_id,
                        min=0,
                        max=MAX_MOTION,
                        optional=True,
                        tooltip="Stable Video Diffusion: how much should move.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "noise_aug_strength",
                        default=ClipRequest.noise_aug_strength,
                        min=0.0,
                        max=MostFloat(MAX_NOISE_AUG),
                        step=0.01,
                        optional=True,
                        tooltip="Stable Video Diffusion: noise laid over the picture. More frees the clip from it.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "noise_aug_seed",
                        default=ClipRequest.noise_aug_seed,
                        min=0,
                        max=MAX_SEED,
                        optional=True,
                        tooltip="Stable Video Diffusion: what that noise is drawn from.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "if_too_large",
                        options=[STOP, SHRINK],
                        default=STOP,
                        optional=True,
                        tooltip="The clip does not fit the memory. stop: an error that says what would fit. shrink: "
                        "the largest clip of about the same shape that fits.",
                    )
                ),
                io.Image.Input(
                    "last_picture",
                    optional=True,
                    tooltip="DynamiCrafter's interpolation weights and ToonCrafter: the picture that the clip ends in. "
                    "The same picture twice makes a loop.",
                ),
            ],
            outputs=[
                Conditioning.Output(display_name="conditioning", tooltip="For the DDIM Sampler."),
                io.Float.Output(display_name="frame_rate", tooltip="The fps above, for a Save Video node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @sockets(model=EngineSet, image=torch.Tensor, last_picture=(torch.Tensor, type(None)))
    def execute(
        cls,
        model: EngineSet,
        image: torch.Tensor,
        prompt: str,
        negative_prompt: str,
        width: int,
        height: int,
        num_frames: int,
        fps: int,
        motion_bucket_id: int = ClipRequest.motion_bucket_id,
        noise_aug_strength: float = ClipRequest.noise_aug_strength,
        noise_aug_seed: int = ClipRequest.noise_aug_seed,
        if_too_large: str = STOP,
        last_picture: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        progress, peak = ui.Progress(cls.hidden.unique_id, 4), PeakMemory(model.device)

        def stage(name: str, done: int, total: int) -> None:
            progress.step(done, total)
            progress.say(f"encode: {name.removeprefix('encode ')}")

        with ui.sentences():
            if if_too_large not in (STOP, SHRINK):
                raise InputError(f"if_too_large is {STOP} or {SHRINK}, found {if_too_large!r:.80}.")
            picture = picture_from_tensor(image)
            last = None if last_picture is None else picture_from_tensor(last_picture)
            clip = (picture, prompt, negative_prompt, width, height, num_frames, fps)
            request = ClipRequest(*clip, motion_bucket_id, noise_aug_strength, noise_aug_seed, last)
            check_request(request)  # which may have come over links
            plan = plan_clip(model, request.size, shrink=if_too_large == SHRINK)
            found = encode_clip(plan, request, folders.conditioning_cache(), stage)
        progress.step(4, 4)
        spent = peak.lines() if found.place == "encoded" else []
        lines = [_origin(found), *spent, *found.notes, *model.take_notes()]
        progress.say("\n".join(lines))
        return io.NodeOutput(found, float(fps), ui=ui.text_ui(lines))


def _origin(found: Encoded) -> str:
    if found.place == "encoded":
        return f"cache miss: encoded in {found.encode_s:.2f} s"
    return f"cache hit ({found.place}): {found.encode_s:.2f} s saved"
