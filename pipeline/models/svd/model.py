"""Stable Video Diffusion (Blattmann et al. 2023, arXiv:2311.15127) in the layout of
stabilityai/stable-video-diffusion-img2vid and -xt.

A picture becomes a clip without a word: it is seen by CLIP as one token, and by the UNet as latents beside
the noise of every frame.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image

from ....common.spec import Guidance, Scope, TensorSpec
from ...denoising.guidance import BOTH, GuidanceScale, branch_inputs, branch_values, guide, rescale_of
from ...fused import blocks, kernels
from ...media.image import antialiased, crop_to_aspect, to_unit_tensor
from ...request import ClipRequest, Encoded
from .. import deep_features, fused_vae, parts
from ..base import Run, Stage
from ..checkpoints.diffusers_folder import Checkpoint, check_settings
from ..deep_features import deep_channels
from ..diffusers_family import DiffusersFamily, Network
from ..model_networks import DEEP, SHALLOW
from ..parts import ImageEncoder, VaeEncoder
from . import fused, networks
from .fused import (
    DECODER_REWRITES,
    DENOISER_REWRITES,
    FusedDeep,
    FusedDenoiser,
    FusedShallow,
    FusedTemporalVaeDecoder,
)
from .lora_names import NAMES
from .networks import Conditioner, DeepNetwork, DenoiserNetwork, ShallowNetwork, TemporalVaeDecoder

if TYPE_CHECKING:
    from typing_extensions import Self

LAYOUT: dict[str, tuple[str, ...]] = {
    "unet": ("UNetSpatioTemporalConditionModel",),
    "vae": ("AutoencoderKLTemporalDecoder",),
    "image_encoder": ("CLIPVisionModelWithProjection",),
    "feature_extractor": ("CLIPImageProcessor", "CLIPImageProcessorPil", "CLIPImageProcessorFast"),
    "scheduler": ("EulerDiscreteScheduler",),
}
CODE = (sys.modules[__name__], networks, fused, blocks, deep_features, fused_vae, parts, kernels)
SETTINGS: dict[str, dict[str, type]] = {
    "unet": {
        "in_channels": int,
        "block_out_channels": list,
        "down_block_types": str,
        "up_block_types": str,
    },
    "vae": {"scaling_factor": float},
    "image_encoder": {"image_size": int, "projection_dim": int},
    "feature_extractor": {"image_mean": list, "image_std": list},
}
TRAINED_FRAMES = (14, 25)
"""Of the two published models, which nothing in a single file tells apart."""
LOG_SIGMAS = (0.25 * math.log(0.002), 0.25 * math.log(700.0))
"""The network's timesteps: a quarter of the noise's logarithm, over the published range."""
NO_TEXT = "Stable Video Diffusion has no text encoder: the prompts are not used."


def _networks(checkpoint: Checkpoint) -> dict[str, Network]:
    """Every component of the family, with sizes read from the checkpoint's configurations."""
    unet, vision = (checkpoint.parts[name].config for name in ("unet", "image_encoder"))
    channels, attended = _constant_channels(unet)
    clip, branch = Scope.CLIP, Guidance.PER_BRANCH
    plane = ("latent_height", "latent_width")
    latent = unet["in_channels"] // 2
    side, volume = vision["image_size"], ("batch", "frames", latent, *plane)
    pixels = TensorSpec("pixel_values", (1, 3, side, side), scope=clip)
    image_embeds = TensorSpec("image_embeds", (1, vision["projection_dim"]), scope=clip, guidance=branch)
    clip_emb = TensorSpec("clip_emb", ("batch", unet["block_out_channels"][0] * 4), scope=clip)
    frame_emb = TensorSpec("frame_emb", (1, "frames", channels), scope=clip)
    attended_spec = TensorSpec("attended", ("batch", attended), scope=clip, guidance=branch)
    conditioner_inputs = (
        TensorSpec("time_ids", ("batch", 3), "float32", clip, span=(0, 128)),
        TensorSpec("frame_index", ("frames",), "float32", clip, span=(0, 25)),
        TensorSpec("image_embeds", ("batch", vision["projection_dim"]), scope=clip, guidance=branch),
    )
    denoiser_inputs = (
        TensorSpec("sample", volume),
        TensorSpec("timestep", ("batch",), "float32", span=LOG_SIGMAS),
        TensorSpec("image_latents", ("batch", latent, *plane), scope=clip, guidance=branch),
        clip_emb,
        frame_emb,
        attended_spec,
    )
    deep = TensorSpec("deep", ("batch", "frames", deep_channels(unet), *plane), guidance=branch)
    pixel_plane = tuple(f"{name}*8" for name in plane)
    picture, frames = (TensorSpec("image", (n, 3, *pixel_plane), scope=clip) for n in (1, "chunk"))
    first, latents = (TensorSpec("latents", (n, latent, *plane), scope=clip) for n in (1, "chunk"))
    core = Network(
        "unet",
        DenoiserNetwork,
        denoiser_inputs,
        (TensorSpec("prediction", volume),),
        ("batch", "frames", *plane),
        rewritten=FusedDenoiser,
    )
    return {
        "image_encoder": Network("image_encoder", ImageEncoder, (pixels,), (image_embeds,), ()),
        "vae_encoder": Network("vae", VaeEncoder, (picture,), (first,), plane),
        "conditioner": Network(
            "unet", Conditioner, conditioner_inputs, (clip_emb, frame_emb, attended_spec), (), exportable=False
        ),
        "core": core,
        **core.with_deep(deep, (DeepNetwork, ShallowNetwork), (FusedDeep, FusedShallow)),
        "vae_decoder": Network(
            "vae", TemporalVaeDecoder, (latents,), (frames,), ("chunk", *plane), rewritten=FusedTemporalVaeDecoder
        ),
    }


def _constant_channels(unet: Mapping[str, Any]) -> tuple[int, int]:
    """The channels of all transformers together, and of all cross-attentions in them, as diffusers builds them."""
    channels, levels = unet["block_out_channels"], len(unet["block_out_channels"])
    depths, layers = (
        value if isinstance(value, list) else [value] * levels
        for value in (unet.get("transformer_layers_per_block", 1), unet.get("layers_per_block", 2))
    )
    down = [level for level, kind in enumerate(unet["down_block_types"]) if "CrossAttn" in kind]
    up = [levels - 1 - level for level, kind in enumerate(unet["up_block_types"]) if "CrossAttn" in kind]
    found = [level for level in down for _ in range(layers[level])]
    found += [level for level in up for _ in range(layers[level] + 1)]
    found += [levels - 1]
    return sum(channels[level] for level in found), sum(2 * depths[level] * channels[level] for level in found)


class StableVideoDiffusion(DiffusersFamily):
    """A checkpoint of Stable Video Diffusion."""

    family: ClassVar[str] = "svd"
    title: ClassVar[str] = "Stable Video Diffusion"
    pipeline_class: ClassVar[str] = "StableVideoDiffusionPipeline"
    hints: ClassVar[tuple[str, ...]] = (NO_TEXT, "Stable Video Diffusion is sampled by the scheduler euler.")
    unused: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("prompt", "negative_prompt"), NO_TEXT),
        "last_picture": "Stable Video Diffusion does not end in a given picture: last_picture is not used.",
    }
    schedulers: ClassVar[tuple[str, ...]] = ("euler",)
    min_guidance_scale: ClassVar[float | None] = 1.0
    decodes_over_time: ClassVar[bool] = True
    engine_gain: ClassVar[float] = 0.39
    """From 17.8 s a clip to 10.8, on an H200."""
    engine_components: ClassVar[tuple[str, ...]] = ("image_encoder", "vae_encoder", "core", "vae_decoder")
    build_order: ClassVar[tuple[str, ...]] = ("core", "vae_decoder", "vae_encoder", "image_encoder")

    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {
        **dict.fromkeys(("core", DEEP, SHALLOW), DENOISER_REWRITES),
        "vae_decoder": DECODER_REWRITES,
    }
    rewriting_backends: ClassVar[frozenset[str]] = frozenset({"inductor"})
    layout: ClassVar[Mapping[str, tuple[str, ...]]] = LAYOUT
    settings: ClassVar[Mapping[str, Mapping[str, type]]] = SETTINGS
    made_by: ClassVar[tuple[ModuleType, ...]] = CODE
    denoiser_scratch_bytes: ClassVar[Mapping[str, int]] = {"eager": 18_000}
    """7.7 GiB at 1024x576, 25 frames, guided: measured on an H200."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        model = super().open(folder)
        if "num_frames" in model.config("unet"):
            check_settings(model.checkpoint.parts["unet"], {"num_frames": int})
        return model

    def networks(self) -> Mapping[str, Network]:
        return _networks(self.checkpoint)

    def lora_names(self, module: str) -> tuple[str, ...]:
        return NAMES.published(module)

    def encode(self, request: ClipRequest, run: Run, stage: Stage) -> Encoded:
        """The picture through both encoders, then with the frame rate and the motion through the conditioner."""
        stage("encode picture", 0, 3)
        picture = crop_to_aspect(request.picture, request.width, request.height)
        image_embeds = run("image_encoder", {"pixel_values": self._clip_pixels(picture)})["image_embeds"]
        stage("encode latents", 1, 3)
        latents = run("vae_encoder", {"image": _noisy(picture, request)})["latents"].float().cpu()
        stage("condition", 2, 3)
        network = self.networks()["conditioner"]
        outputs = run("conditioner", branch_inputs(network.inputs, _conditioner_values(request, image_embeds), BOTH))
        stage("condition", 3, 3)
        found = {name: x.float().cpu() for name, x in branch_values(network.outputs, outputs).items()}
        # The unconditional branch sees no picture: zeros in its place, unscaled as the network was trained.
        found["image_latents"] = torch.cat([torch.zeros_like(latents), latents])
        return Encoded(found, self._notes(request))

    def noise(self, width: int, height: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
        torch.randn(1, 3, height, width, generator=generator)  # the published pipeline has drawn the picture's by now
        return torch.randn(self.latent.shape(width, height, num_frames), generator=generator)

    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        return {**tensors, "sample": x[None], "timestep": t.float().reshape(1)}

    def combine(self, outputs: Mapping[str, torch.Tensor], guidance_scale: GuidanceScale) -> torch.Tensor:
        return guide(outputs["prediction"], guidance_scale, rescale_of(self.scheduler_config))

    def _clip_pixels(self, picture: Image.Image) -> torch.Tensor:
        """The whole picture for CLIP, float32 [1, 3, side, side], normalised."""
        extractor, side = self.config("feature_extractor"), self.config("image_encoder")["image_size"]
        square = antialiased(to_unit_tensor(picture) * 2 - 1, side) / 2 + 0.5
        mean, std = (torch.tensor(extractor[name]).reshape(1, 3, 1, 1) for name in ("image_mean", "image_std"))
        return (square - mean) / std

    def _notes(self, request: ClipRequest) -> tuple[str, ...]:
        found = self.config("unet").get("num_frames")
        trained = TRAINED_FRAMES if found is None else (found,)
        if request.num_frames in trained:
            return ()
        frames = " or ".join(map(str, trained))
        return (
            f"This checkpoint was trained for {frames} frames, asked for {request.num_frames}: they may look worse.",
        )


def _noisy(picture: Image.Image, request: ClipRequest) -> torch.Tensor:
    """The picture under its noise, float32 [1, 3, height, width], about -1..1."""
    scaled = picture.resize((request.width, request.height), Image.Resampling.LANCZOS)
    image = to_unit_tensor(scaled) * 2 - 1
    generator = torch.Generator().manual_seed(request.noise_aug_seed)
    return image + request.noise_aug_strength * torch.randn(image.shape, generator=generator)


def _conditioner_values(request: ClipRequest, image_embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Inputs of the conditioner; the unconditional branch has zeros as picture embedding."""
    # Trained on one frame per second less: generative-models/scripts/sampling/simple_video_sample.py.
    ids = torch.tensor([[request.fps - 1, request.motion_bucket_id, request.noise_aug_strength]])
    return {
        "time_ids": ids,
        "frame_index": torch.arange(request.num_frames, dtype=torch.float32),
        "image_embeds": torch.cat([torch.zeros_like(image_embeds), image_embeds]),
    }
