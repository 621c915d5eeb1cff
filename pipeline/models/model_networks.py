"""The networks of a checkpoint: how each is loaded, which weights they share, and the LoRAs merged into those."""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar
from weakref import WeakValueDictionary

from ...common.errors import InputError
from ...common.network_source import NetworkSource
from ...common.spec import NetworkSpec
from .checkpoints.diffusers_folder import BlockList, Checkpoint
from .checkpoints.file_digests import take_digests
from .checkpoints.lora import Adapter, open_adapter
from .checkpoints.originals import Originals
from .parts import load_part

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

BUILT_BLOCKS = 2
"""Blocks of a network whose engine is compiled from one: enough to see whether their results go on from each other."""
DEEP, SHALLOW = "core_deep", "core_shallow"
"""Components of a UNet for a deep cache: the denoiser that gives its deep features too, and its part above them."""


class LoadComponent(Protocol):
    """Gives a network in a precision (`fp32`, `fp16`, `bf16`), made with these rewrites."""

    def __call__(self, precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module: ...


_Model = TypeVar("_Model", bound="ModelNetworks")


def first_blocks(model: _Model, component: str, count: int) -> _Model:
    """The same checkpoint with the first `count` of a component's equal blocks alone, without LoRAs."""
    checkpoint = model.checkpoint
    part = checkpoint.parts[model.part_of(component)].with_blocks(model.block_lists[component], count)
    return type(model)(replace(checkpoint, parts={**checkpoint.parts, part.name: part}))


def apart(model: _Model) -> _Model:
    """The same model with networks of its own: one network is on one device at a time.

    Weights that no LoRA changes are the same pages of the checkpoint's files.
    """
    made = type(model)(model.checkpoint)
    made.adapters, made.originals = model.adapters, model.originals
    return made


def streamed_bytes(model: ModelNetworks, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> int:
    """As `size_bytes`, where no more than `BUILT_BLOCKS` of the component's equal blocks are there at a time."""
    if component in model.block_lists:
        model = first_blocks(model, component, BUILT_BLOCKS)
    return model.size_bytes(component, precision, rewrites)


def reading_note(model: ModelNetworks) -> str | None:
    """Sentence on the weights under the LoRAs that are read from disk again without them; None where all are kept.

    They are kept in host memory as far as there is room.
    """
    size_bytes = 0.0
    for name, part in model.checkpoint.parts.items():
        changed = {change.parameter for each in model.adapters_of(name) for change in each.changes[name]}
        stored_bytes = sum(path.stat().st_size for path in next(iter(part.weights.values()), ()))
        elements = sum(math.prod(part.shapes[parameter]) for parameter in changed)
        size_bytes += stored_bytes * elements / max(part.elements, 1)
    missing_bytes = int(size_bytes) - model.originals.size_bytes
    if missing_bytes <= 0 or model.originals.has_room_for(missing_bytes):
        return None
    return f"Taking LoRAs off reads {size_bytes / 2**30:.1f} GiB of weights again: memory has no room to keep them."


def check_rewrites(model: ModelNetworks, component: str, rewrites: tuple[str, ...]) -> None:
    """Raises InputError when the component does not know one of them."""
    known = (*model.known_rewrites.get(component, ()), *model.known_roundings)
    unknown = [name for name in rewrites if name not in known]
    if unknown:
        raise InputError(f"The rewrites of {component} are {', '.join(known) or 'none'}, found {', '.join(unknown)}.")


@dataclass(frozen=True)
class Component:
    """One network of a model: its specification, and the function that loads it."""

    spec: NetworkSpec
    load: LoadComponent


class ModelNetworks(ABC):
    """A checkpoint's networks by component. Holds no weights: its components load them."""

    title: ClassVar[str]
    """Name of the family in messages."""
    denoiser: ClassVar[str] = "core"
    """The component that runs at every step, or at the first ones."""
    denoisers: ClassVar[tuple[str, ...]] = ("core",)
    """The components of which one runs at every step, in the order in which a clip needs them."""
    instead_of_fp16: ClassVar[Mapping[str, str]] = {}
    """Components that fp16 is too small for, whatever the weights, and the precision that takes its place."""
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    """Lossless rewrites that a component can be made with, in the order in which to switch them on."""
    bf16_rewrites: ClassVar[frozenset[str]] = frozenset()
    """Rewrites that serve bf16 alone, in which the component is faster for them."""
    known_roundings: ClassVar[tuple[str, ...]] = ()
    """Rewrites of the denoisers that round their products."""
    block_lists: ClassVar[Mapping[str, BlockList]] = {}
    """The equal blocks of components that have such."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint
        self.adapters: tuple[Adapter, ...] = ()
        self.originals = Originals()
        self._parts: WeakValueDictionary[tuple[str, str, tuple[Adapter, ...]], Any] = WeakValueDictionary()

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        """The rewrites that pay for a component on a backend, by its name: a part of the known ones."""
        return ()

    def roundings(self, component: str, precision: str, backend: str) -> tuple[str, ...]:
        """The rewrites that round a component's products to that precision on a backend; none where it cannot."""
        return ()

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> NetworkSource:
        """Source from which another process loads a component's network.

        With `blocks` it has so many of its equal blocks alone, without LoRAs.
        """
        if blocks:
            found = first_blocks(self, component, blocks).source(component, precision, rewrites)
            return replace(found, arguments={**found.arguments, "blocks": str(blocks)})
        arguments = {
            "folder": str(self.checkpoint.folder),
            "component": component,
            "precision": precision,
            "rewrites": ",".join(rewrites),
            "adapters": json.dumps([[str(each.path), each.strength, each.denoisers] for each in self.adapters]),
        }
        size_bytes = self.size_bytes(component, precision, rewrites)
        has_weights = self.checkpoint.has_weights
        return NetworkSource("pipeline.models.registry", "load_network", arguments, size_bytes, has_weights)

    @abstractmethod
    def size_bytes(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> int:
        """Memory in bytes that the weights of a component's part take in that precision, with these rewrites."""

    @abstractmethod
    def load(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
        """A component's network on the CPU; takes no digest of the weights.

        Raises InputError for a rewrite that the component does not know.
        """

    def part(self, name: str, precision: str) -> Any:
        """A part's network by its library class, read from disk once as long as a reference to the network exists."""
        adapters = self.adapters_of(name)
        found = self._parts.get((name, precision, adapters))
        if found is None:
            found = load_part(self.checkpoint.parts[name], precision, adapters, self.originals)
            self._parts[(name, precision, adapters)] = found
        return found

    def adapters_of(self, part: str) -> tuple[Adapter, ...]:
        """The LoRAs that change a part, in the order in which they are merged."""
        return tuple(adapter for adapter in self.adapters if part in adapter.changes)

    def part_sha256(self, name: str) -> str:
        """Digest of a part's configuration and weights, and of the LoRAs merged into them."""
        digests = [self.checkpoint.parts[name].sha256, *(adapter.sha256 for adapter in self.adapters_of(name))]
        return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()

    def take_digests(self, report: Callable[[float], None]) -> None:
        """Takes, once and for all, the digests of all files that have none for their present state.

        `report` is called meanwhile with the fraction done, and may raise to stop. Raises CheckpointError for a file
        that cannot be read.
        """
        items = [part.digested for part in self.checkpoint.parts.values()]
        once = [item for place, item in enumerate(items) if item not in items[:place]]
        take_digests([*once, *self.adapters], report)

    def with_adapter(self, path: Path, strength: float, denoisers: tuple[str, ...] = ()) -> Self:
        """The same model with a LoRA merged into its weights at every load, after the model's earlier LoRAs.

        `denoisers` are the components that the LoRA is for, among those that run at a step; all if empty. Other parts
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
        made._parts, made.originals = self._parts, self.originals
        made.adapters = (*self.adapters, open_adapter(path, strength, parts, text, self.lora_names, self.lora_lacking))
        return made

    @abstractmethod
    def part_of(self, component: str) -> str:
        """The part of the checkpoint that a component is made from."""

    def lora_names(self, module: str) -> Iterable[str]:
        """Other names of a module of the network that runs at a step, by its name in diffusers."""
        return ()

    def lora_lacking(self, module: str) -> str | None:
        """The part that kindred models have and that a module, by its plain name in a LoRA, is in; None for no such."""
        return None

    @cached_property
    @abstractmethod
    def components(self) -> Mapping[str, Component]:
        """The networks by name. They hold digests of the weights: the first access reads files that are not known."""
