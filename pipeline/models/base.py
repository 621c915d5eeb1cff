"""Interface of a model family: its networks, and the way from a request to a prediction."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..denoising.guidance import GuidanceScale
from ..denoising.schedulers import SCHEDULERS
from ..request import ClipRequest, Encoded
from .latent_space import LatentSpace
from .model_networks import ModelNetworks

if TYPE_CHECKING:
    import torch

    from ..decode import DecodeChunk

Run = Callable[[str, Mapping[str, "torch.Tensor"]], Mapping[str, "torch.Tensor"]]
"""Callback that runs a component by name on named tensors; the pipeline's caller chooses the engine."""

Stage = Callable[[str, int, int], None]
"""Callback with the stage's name, the number of steps done and the number of all steps; may raise to interrupt."""


class VideoModel(ModelNetworks):
    """A checkpoint of one family that makes clips. Holds no weights: its components load them."""

    family: ClassVar[str]
    pipeline_class: ClassVar[str]
    """The class in model_index.json by which the family is recognised."""
    hints: ClassVar[tuple[str, ...]] = ()
    """Sentences of advice for a user who comes from another family."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Fields of a request that mean nothing to the family, each with the sentence for a user who sets the field."""
    schedulers: ClassVar[tuple[str, ...]] = tuple(SCHEDULERS)
    """The schedulers that the family's networks were trained for."""
    ignored_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of a request that the family's networks do not use, without a message to the user."""
    min_guidance_scale: ClassVar[float | None] = None
    """The first frame's guidance where it rises towards the last; None where all frames have the same."""
    decodes_over_time: ClassVar[bool] = False
    """Whether a decoded frame depends on the others of its chunk."""
    decoder_inputs: ClassVar[Mapping[str, str]] = {}
    """Encoded tensors of a clip that its decoder needs beside the latents, each with words for it in a sentence."""
    decoder_component: ClassVar[str] = "vae_decoder"
    """The component that decodes, or decodes most."""
    engine_gain: ClassVar[float] = 0.1
    """The share of a step that an engine saves over eager PyTorch."""
    engine_components: ClassVar[tuple[str, ...]]
    """The components worth compiling, in the order in which a clip needs them."""
    build_order: ClassVar[tuple[str, ...]]
    """The same components, the longest build first, for builders that share the work."""
    latent: ClassVar[LatentSpace] = LatentSpace()
    """Latent space of the family."""

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        """Whether a model_index.json is one of the family."""
        return index.get("_class_name") == cls.pipeline_class

    @classmethod
    @abstractmethod
    def open(cls, folder: Path) -> VideoModel:
        """Checks the folder; raises CheckpointError."""

    @property
    @abstractmethod
    def scheduler_config(self) -> Mapping[str, Any]:
        """The published scheduler's configuration, as diffusers reads it."""

    @cached_property
    @abstractmethod
    def encode_sha256(self) -> str:
        """Digest of everything in the checkpoint that `encode` depends on."""

    @property
    @abstractmethod
    def latent_scale(self) -> float:
        """Divisor of the sampler's latents that gives the VAE's latents."""

    def to_latent(self, x: torch.Tensor) -> torch.Tensor:
        """The sampler's latents [frames, channels, height, width] as ComfyUI's LATENT holds the family's."""
        return self.latent.pack(x / self.latent_scale)

    def from_latent(self, latents: torch.Tensor) -> torch.Tensor:
        """A LATENT as the decoder takes it, [frames, channels, height, width]; raises InputError for another's."""
        return self.latent.unpack(latents)

    @abstractmethod
    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        """Estimate of the device memory that a call by a backend needs beside the weights."""

    @abstractmethod
    def encode(self, request: ClipRequest, run: Run, stage: Stage) -> Encoded:
        """Everything that stays the same for a clip; see `Encoded`."""

    @abstractmethod
    def noise(self, width: int, height: int, num_frames: int, generator: torch.Generator) -> torch.Tensor:
        """Starting noise, float32 [frames, channels, height, width] in latents, drawn as the reference draws it."""

    @abstractmethod
    def prepare_input(
        self, x: torch.Tensor, t: torch.Tensor, tensors: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The denoiser's inputs for latents [frames, channels, height, width] at timestep `t` (a scalar).

        Guidance branches are laid out as in `Encoded`: `guidance.branch_inputs` makes calls of them.
        """

    @abstractmethod
    def combine(self, outputs: Mapping[str, torch.Tensor], guidance_scale: GuidanceScale) -> torch.Tensor:
        """The guided prediction, float32 [frames, channels, height, width], from the denoiser's outputs."""

    def select_denoiser(self, t: float) -> str:
        """The component that predicts at timestep `t`: one of `denoisers`."""
        return self.denoiser

    def finish(self, x: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The clip's latents [frames, channels, height, width], once they are sampled."""
        return x

    def decoder(self, run: Run, tensors: Mapping[str, torch.Tensor]) -> DecodeChunk:
        """Decode function of one clip, for one chunk of latent frames after another, in their order.

        `tensors` has the clip's `decoder_inputs`.
        """
        return lambda latents: run("vae_decoder", {"latents": latents})["image"]
