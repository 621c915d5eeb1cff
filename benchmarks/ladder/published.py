"""diffusers' own pipelines, each called for the ladder's clip: the state without this pack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch

from ...pipeline.models.base import VideoModel
from ...pipeline.request import ClipRequest
from .job import NEGATIVE_PROMPT, Job


class Published(ABC):
    """A family's pipeline over the checkpoint's networks in one precision; it calls `pipeline.unet` at every step."""

    encoders: ClassVar[tuple[str, ...]]
    """Networks that conditioning alone needs, beside the VAE's encoder."""

    def __init__(self, model: VideoModel, precision: str, device: torch.device) -> None:
        names = ("unet", "vae", *self.encoders)
        networks = {name: model.part(name, precision).to(device).eval() for name in names}
        self.pipeline = self._open(model, networks)
        self.pipeline.set_progress_bar_config(disable=True)
        self.device = device

    @abstractmethod
    def _open(self, model: VideoModel, networks: dict[str, Any]) -> Any:
        """The pipeline."""

    @abstractmethod
    def frames(self, job: Job, steps: int, chunk: int, noise: torch.Tensor) -> torch.Tensor:
        """The clip [frames, 3, height, width] in 0..1, from noise [frames, channels, h, w]; decodes by `chunk`."""

    def decoding(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The VAE's decoding as a function from tensor to tensor."""
        decode = self.pipeline.vae.decode
        return lambda z: decode(z, return_dict=False)[0]

    @staticmethod
    def frame_major(latents: torch.Tensor) -> torch.Tensor:
        """The pipeline's latents, [1, channels, frames, h, w] by default, as [frames, channels, h, w]."""
        return latents[0].transpose(0, 1)

    def _noise(self, noise: torch.Tensor) -> torch.Tensor:
        return noise.to(self.device, self.pipeline.unet.dtype)


class PublishedI2VGenXL(Published):
    """I2VGenXLPipeline, repaired where a newer transformers broke it."""

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "image_encoder")

    def _open(self, model: VideoModel, networks: dict[str, Any]) -> Any:
        import transformers
        from diffusers import DDIMScheduler, I2VGenXLPipeline

        folder = model.checkpoint.folder
        _give_text_model_back(networks["text_encoder"])
        others: dict[str, Any] = {
            "tokenizer": transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            "feature_extractor": _processor(model),
            "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
        }
        return I2VGenXLPipeline(**networks, **others)

    def frames(self, job: Job, steps: int, chunk: int, noise: torch.Tensor) -> torch.Tensor:
        with _posterior_mean():
            return self.pipeline(
                prompt=job.prompt,
                negative_prompt=NEGATIVE_PROMPT,
                image=job.request().picture,
                width=job.width,
                height=job.height,
                num_frames=job.num_frames,
                target_fps=job.fps,
                num_inference_steps=steps,
                guidance_scale=job.guidance_scale,
                decode_chunk_size=chunk,
                latents=self._noise(noise.transpose(0, 1)[None]),
                output_type="pt",
            ).frames[0]


class PublishedSvd(Published):
    """StableVideoDiffusionPipeline."""

    encoders: ClassVar[tuple[str, ...]] = ("image_encoder",)

    def _open(self, model: VideoModel, networks: dict[str, Any]) -> Any:
        from diffusers import EulerDiscreteScheduler, StableVideoDiffusionPipeline

        scheduler: Any = EulerDiscreteScheduler.from_pretrained(model.checkpoint.folder / "scheduler")
        return StableVideoDiffusionPipeline(**networks, feature_extractor=_processor(model), scheduler=scheduler)

    def frames(self, job: Job, steps: int, chunk: int, noise: torch.Tensor) -> torch.Tensor:
        from ...pipeline.media.image import crop_to_aspect

        request: ClipRequest = job.request()
        return self.pipeline(
            image=crop_to_aspect(request.picture, job.width, job.height),
            width=job.width,
            height=job.height,
            num_frames=job.num_frames,
            fps=job.fps,
            motion_bucket_id=request.motion_bucket_id,
            noise_aug_strength=request.noise_aug_strength,
            num_inference_steps=steps,
            max_guidance_scale=job.guidance_scale,
            decode_chunk_size=chunk,
            generator=torch.Generator().manual_seed(request.noise_aug_seed),  # draws the picture's noise alone
            latents=self._noise(noise[None]),
            output_type="pt",
        ).frames[0]

    def decoding(self) -> Callable[[torch.Tensor], torch.Tensor]:
        decode = self.pipeline.vae.decode
        return lambda z: decode(z, num_frames=z.shape[0], return_dict=False)[0]

    @staticmethod
    def frame_major(latents: torch.Tensor) -> torch.Tensor:
        return latents[0]


class PublishedDynamiCrafter(Published):
    """Diffusers' modules, which diffusers has no pipeline of: guidance branches one after the other, as published."""

    encoders: ClassVar[tuple[str, ...]] = ("text_encoder", "image_encoder", "image_projection")

    def _open(self, model: VideoModel, networks: dict[str, Any]) -> Any:
        from ..dynamicrafter_reference import published_pipeline

        return published_pipeline(networks, model.checkpoint.folder)

    def frames(self, job: Job, steps: int, chunk: int, noise: torch.Tensor) -> torch.Tensor:
        from ...pipeline.media.image import crop_to_aspect

        return self.pipeline(
            image=crop_to_aspect(job.request().picture, job.width, job.height),
            prompt=job.prompt,
            negative_prompt=NEGATIVE_PROMPT,
            width=job.width,
            height=job.height,
            fs=job.fps,
            num_inference_steps=steps,
            guidance_scale=job.guidance_scale,
            eta=0.0,
            decode_chunk_size=chunk,
            latents=noise.transpose(0, 1)[None].to(self.device),
            output_type="pt",
        ).frames[0]


PUBLISHED: dict[str, type[Published]] = {
    "i2vgen_xl": PublishedI2VGenXL,
    "svd": PublishedSvd,
    "dynamicrafter": PublishedDynamiCrafter,
}
"""By family."""


def _processor(model: VideoModel) -> Any:
    import transformers

    processor = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return processor.from_pretrained(model.checkpoint.folder / "feature_extractor")


def _give_text_model_back(text_encoder: Any) -> None:
    """Before transformers 5.6 the pipeline found the last norm under this name."""
    if not hasattr(text_encoder, "text_model"):
        # Past the module's own bookkeeping, which would find the encoder inside itself.
        object.__setattr__(text_encoder, "text_model", text_encoder)


@contextmanager
def _posterior_mean() -> Iterator[None]:
    """Makes the VAE give its posterior's mean: the pipeline would draw from the global random state."""
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution as Posterior

    drawn = Posterior.sample
    Posterior.sample = lambda self, generator=None: self.mode()  # type: ignore[method-assign]
    try:
        yield
    finally:
        Posterior.sample = drawn  # type: ignore[method-assign]
