"""Wan 2.2 (Wan-AI/Wan2.2-I2V-A14B-Diffusers, Wan2.2-TI2V-5B-Diffusers): two experts; a first frame without noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from ....common.errors import CheckpointError
from ....common.spec import TensorSpec
from ..base import Run, Stage
from ..checkpoints.diffusers_folder import INDEX
from ..diffusers_family import Network
from ..latent_space import LatentSpace
from .causal_vae import TIME_FACTOR, encode_picture
from .checkpoint import LAYOUT, MAX_FRAMES, SETTINGS, TIMESTEPS
from .model import DECODER, ENCODER, Wan, is_named
from .networks import PATCH
from .vae import PLANE


class WanA14B(Wan):
    """Wan 2.2 I2V A14B: one expert for the noise's share of the clip, another one that ends it."""

    family: ClassVar[str] = "wan22_a14b"
    title: ClassVar[str] = "Wan 2.2 A14B"
    denoisers: ClassVar[tuple[str, ...]] = ("core", "core_late")
    engine_components: ClassVar[tuple[str, ...]] = ("text_encoder", *ENCODER, "core", "core_late", *DECODER)
    build_order: ClassVar[tuple[str, ...]] = ("core", "core_late", "text_encoder", *DECODER, *ENCODER)
    layout: ClassVar[Mapping[str, tuple[str, ...]]] = {**LAYOUT, "transformer_2": LAYOUT["transformer"]}
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = {**SETTINGS, "transformer_2": SETTINGS["transformer"]}

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        return super().recognises(index) and is_named(index, "transformer_2") and not index.get("expand_timesteps")

    def check(self) -> None:
        super().check()
        found = self.checkpoint.index.get("boundary_ratio")
        if not isinstance(found, float) or not 0 < found < 1:
            path = self.checkpoint.folder / INDEX
            raise CheckpointError(f"{path}: expected boundary_ratio to be a number between 0 and 1, found {found!r}.")

    def select_denoiser(self, t: float) -> str:
        boundary = self.checkpoint.index["boundary_ratio"] * self.scheduler_config.get("num_train_timesteps", 1000)
        return "core" if t >= boundary else "core_late"


class WanTI2V(Wan):
    """Wan 2.2 TI2V-5B: the picture is the first frame of latents, whose timestep is always 0."""

    family: ClassVar[str] = "wan22_ti2v"
    title: ClassVar[str] = "Wan 2.2 TI2V"
    engine_components: ClassVar[tuple[str, ...]] = ("text_encoder", *ENCODER[::2], "core", *DECODER)
    build_order: ClassVar[tuple[str, ...]] = ("core", "text_encoder", *DECODER, *ENCODER[::2])
    latent: ClassVar[LatentSpace] = LatentSpace(48, 16, TIME_FACTOR, 16 * PATCH, MAX_FRAMES, "Wan22", video=True)

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        # Published as the pipeline without a picture, whose index the one with a picture reads all the same.
        return bool(index.get("expand_timesteps")) and index.get("_class_name") in (cls.pipeline_class, "WanPipeline")

    @property
    def condition_channels(self) -> int:
        return 0

    def networks(self) -> Mapping[str, Network]:
        found = dict(super().networks())
        del found["vae_encoder_next"]  # the picture alone is encoded
        last = found["vae_encoder_last"]
        inputs, outputs = (tuple(map(_of_one_frame, tensors)) for tensors in (last.inputs, last.outputs))
        return {**found, "vae_encoder_last": replace(last, inputs=inputs, outputs=outputs, ranges=PLANE)}

    def picture_inputs(self) -> tuple[TensorSpec, ...]:
        return ()

    def _denoiser(self, part: str) -> Network:
        found = super()._denoiser(part)
        sample, _, *rest = found.inputs
        timestep = TensorSpec("timestep", ("batch", "frames"), "float32", span=TIMESTEPS)
        return replace(found, inputs=(sample, timestep, *rest))

    def condition(self, image: torch.Tensor, frames: int, run: Run, stage: Stage) -> dict[str, torch.Tensor]:
        return {"first_frame": encode_picture(run, image, 1, lambda *_: stage("encode latents", 2, 3))}

    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        others = {name: value for name, value in tensors.items() if name != "first_frame"}
        found = super().prepare_input(self.finish(x, tensors), t, others)
        timestep = torch.cat([torch.zeros(1, device=x.device), t.float().reshape(1).expand(len(x) - 1)])
        return {**found, "timestep": timestep[None]}

    def finish(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors["first_frame"], x[1:]])


def _of_one_frame(tensor: TensorSpec) -> TensorSpec:
    return replace(tensor, dims=(1, *tensor.dims[1:]))
