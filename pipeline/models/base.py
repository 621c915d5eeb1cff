"""What a model family gives to the rest: its networks, and the way from a request to a prediction."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol
from weakref import WeakValueDictionary

from ...common.errors import InputError
from ...common.network_source import NetworkSource
from ...common.spec import NetworkSpec
from ..denoising.guidance import GuidanceScale
from ..denoising.schedulers import SCHEDULERS
from ..request import ClipRequest, Encoded
from .checkpoints.diffusers_folder import Checkpoint
from .checkpoints.file_digests import take_digests
from .checkpoints.lora import Adapter, open_adapter
from .latent_space import LatentSpace
from .parts import load_part

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from ..decode import DecodeChunk

Run = Callable[[str, Mapping[str, "torch.Tensor"]], Mapping[str, "torch.Tensor"]]
"""Runs a component by name on named tensors; whoever calls the pipeline decides by which engine."""

Stage = Callable[[str, int, int], None]
"""Told the name of the stage, how many steps are done and how many there are; may raise to interrupt."""


class LoadComponent(Protocol):
    """Gives a network in a precision (`fp32`, `fp16`, `bf16`), made with these rewrites."""

    def __call__(self, precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module: ...


@dataclass(frozen=True)
class Component:
    """One network of a model: what it is, and how to get it."""

    spec: NetworkSpec
    load: LoadComponent


class VideoModel(ABC):
    """A checkpoint of one family. Holds no weights: those are loaded by its components."""

    family: ClassVar[str]
    title: ClassVar[str]
    """What people call the family."""
    pipeline_class: ClassVar[str]
    """The class in model_index.json by which the family is recognised."""
    hints: ClassVar[tuple[str, ...]] = ()
    """What a user should know who comes from another family, a sentence each."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Fields of a request that mean nothing to the family, and the sentence for who sets one."""
    schedulers: ClassVar[tuple[str, ...]] = tuple(SCHEDULERS)
    """The schedulers that the family's networks were trained for."""
    ignored_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of a request that its networks make no use of, and of which nobody needs to be told."""
    min_guidance_scale: ClassVar[float | None] = None
    """The first frame's guidance where it rises towards the last; None where all frames have the same."""
    decodes_over_time: ClassVar[bool] = False
    """Whether a decoded frame depends on the others of its chunk."""
    denoiser: ClassVar[str] = "core"
    """The component that runs at every step, or at the first ones."""
    denoisers: ClassVar[tuple[str, ...]] = ("core",)
    """The components of which one runs at every step, in the order in which a clip needs them."""
    decoder_component: ClassVar[str] = "vae_decoder"
    """The component that decodes, or decodes most."""
    engine_gain: ClassVar[float] = 0.1
    """The share of a step that an engine saves over eager PyTorch."""
    engine_components: ClassVar[tuple[str, ...]]
    """The components worth compiling, in the order in which a clip needs them."""
    build_order: ClassVar[tuple[str, ...]]
    """The same components, the longest build first, for builders that share the work."""
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Other ways to the same result that a component can be made with, in the order in which to switch them on."""
    latent: ClassVar[LatentSpace] = LatentSpace()
    """What its latents stand for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.adapters: tuple[Adapter, ...] = ()
        self._parts: WeakValueDictionary[tuple[str, str, tuple[Adapter, ...]], Any] = WeakValueDictionary()

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        """The rewrites that pay for a component on a backend, by its name: a part of the known ones."""
        return ()

    def check_rewrites(self, component: str, rewrites: tuple[str, ...]) -> None:
        """Raises InputError when the component does not know one of them."""
        known = self.known_rewrites.get(component, ())
        unknown = [name for name in rewrites if name not in known]
        if unknown:
            raise InputError(
                f"The rewrites of {component} are {', '.join(known) or 'none'}, found {', '.join(unknown)}."
            )

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> NetworkSource:
        """How another process gets a component's network."""
        arguments = {
            "folder": str(self.checkpoint.folder),
            "component": component,
            "precision": precision,
            "rewrites": ",".join(rewrites),
            "adapters": json.dumps([[str(each.path), each.strength, each.denoisers] for each in self.adapters]),
        }
        size_bytes = self.size_bytes(component, precision)
        return NetworkSource("pipeline.models.registry", "load_network", arguments, size_bytes)

    @abstractmethod
    def size_bytes(self, component: str, precision: str) -> int:
        """What the weights of the part that a component belongs to take of memory in that precision."""

    @abstractmethod
    def load(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
        """A component's network on the CPU; takes no digest of the weights.

        Raises InputError for a rewrite that the component does not know.
        """

    def part(self, name: str, precision: str) -> Any:
        """A part's network by its library class, read from disk once for as long as anybody holds it."""
        adapters = self.adapters_of(name)
        found = self._parts.get((name, precision, adapters))
        if found is None:
            found = load_part(self.checkpoint.parts[name], precision, adapters)
            self._parts[(name, precision, adapters)] = found
        return found

    def adapters_of(self, part: str) -> tuple[Adapter, ...]:
        """The LoRAs that change a part, in the order in which they are merged."""
        return tuple(adapter for adapter in self.adapters if part in adapter.changes)

    def part_sha256(self, name: str) -> str:
        """Digest of a part's configuration and weights, and of what is merged into them."""
        digests = [self.checkpoint.parts[name].sha256, *(adapter.sha256 for adapter in self.adapters_of(name))]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def take_digests(self, report: Callable[[float], None]) -> None:
        """Reads, once and for all, the files of which no digest is known as they are now.

        `report` hears meanwhile which fraction is done, and may raise to stop. Raises CheckpointError for a file that
        cannot be read.
        """
        take_digests([*self.checkpoint.parts.values(), *self.adapters], report)

    def with_adapter(self, path: Path, strength: float, denoisers: tuple[str, ...] = ()) -> Self:
        """The same model with a LoRA merged into its weights whenever they are loaded, after those it has already.

        `denoisers` are the components that it is for, of those that run at a step; all if there are none. Other parts
        are shared with this model. Raises InputError, or CheckpointError with names for a file that does not fit.
        """
        known = self.denoisers
        if not set(denoisers) <= set(known):
            raise InputError(f"{self.title} runs {' and '.join(known)} at its steps, found {', '.join(denoisers)}.")
        parts = {
            denoiser: self.checkpoint.parts[self.part_of(denoiser)]
            for denoiser in known
            if denoiser in (denoisers or known)
        }
        text = self.checkpoint.parts.get("text_encoder")
        made = type(self)(self.checkpoint)
        made._parts = self._parts
        made.adapters = (*self.adapters, open_adapter(path, strength, parts, text, self.lora_names))
        return made

    @abstractmethod
    def part_of(self, component: str) -> str:
        """The part of the checkpoint that a component is made from."""

    def lora_names(self, module: str) -> Iterable[str]:
        """What a module of the network that runs at a step is called elsewhere, by its name in diffusers."""
        return ()

    @classmethod
    def recognises(cls, index: Mapping[str, Any]) -> bool:
        """Whether a model_index.json is one of the family."""
        return index.get("_class_name") == cls.pipeline_class

    @classmethod
    @abstractmethod
    def open(cls, folder: Path) -> VideoModel:
        """Checks the folder; raises CheckpointError."""

    @cached_property
    @abstractmethod
    def components(self) -> Mapping[str, Component]:
        """The networks by name. They hold digests of the weights: the first access reads files that are not known."""

    @property
    @abstractmethod
    def scheduler_config(self) -> Mapping[str, object]:
        """The published scheduler's configuration, as diffusers reads it."""

    @cached_property
    @abstractmethod
    def encode_sha256(self) -> str:
        """Digest of everything in the checkpoint that `encode` depends on."""

    @property
    @abstractmethod
    def latent_scale(self) -> float:
        """The sampler's latents divided by this are what the VAE decodes."""

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

        Guidance branches lie as in `Encoded`: `guidance.branch_inputs` makes calls of them.
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

    def decoder(self, run: Run) -> DecodeChunk:
        """What decodes one clip, a chunk of latent frames after another, in their order."""
        return lambda latents: run("vae_decoder", {"latents": latents})["image"]
