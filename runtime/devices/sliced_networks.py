"""The denoisers of a Wan over a part of a clip's tokens, as `Engines` asks for networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch

from ...common.digest import digest
from ...common.errors import InputError
from ...common.network_source import NetworkSource
from ...common.spec import NetworkSpec
from ...pipeline.models import parts
from ...pipeline.models.base import VideoModel
from ...pipeline.models.checkpoints.diffusers_folder import BlockList
from ...pipeline.models.latent_space import LatentSpace
from ...pipeline.models.model_networks import Component
from ...pipeline.models.wan import sliced
from ...pipeline.models.wan.model import Wan
from ...pipeline.models.wan.networks import PATCH


class SlicedNetworks:
    """A model's denoisers, called as they are, of which each process computes its tokens; made by `of`."""

    denoisers: ClassVar[tuple[str, ...]]
    engine_components: ClassVar[tuple[str, ...]]
    build_order: ClassVar[tuple[str, ...]]
    bf16_rewrites: ClassVar[frozenset[str]]
    instead_of_fp16: ClassVar[Mapping[str, str]]
    block_lists: ClassVar[Mapping[str, BlockList]]
    latent: ClassVar[LatentSpace]
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    def __init__(self, model: VideoModel) -> None:
        self.model = model

    @classmethod
    def of(cls, model: VideoModel) -> SlicedNetworks:
        """The denoisers of a model; raises InputError for a model without such networks."""
        if not isinstance(model, Wan):
            raise InputError(f"Wan's clips are shared by their tokens, found {model.title}.")
        names = ("denoisers", "bf16_rewrites", "instead_of_fp16", "block_lists", "latent")
        of_model = {name: getattr(model, name) for name in names}
        others = dict.fromkeys(("engine_components", "build_order"), model.denoisers)
        return type(cls.__name__, (cls,), {**of_model, **others})(model)

    @cached_property
    def components(self) -> Mapping[str, Component]:
        found = {name: self.model.components[name] for name in self.denoisers}
        return {name: Component(_named(each.spec), _Load(each)) for name, each in found.items()}

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        """The model's own rewrites, and the name of this one."""
        return (*self.model.rewrites(component, backend), sliced.SLICED)

    def roundings(self, component: str, precision: str, backend: str) -> tuple[str, ...]:
        return self.model.roundings(component, precision, backend)

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> NetworkSource:
        """As the model's; a network without rewrites is the whole one, which engines are compared with."""
        own = tuple(name for name in rewrites if name != sliced.SLICED)
        found = self.model.source(component, precision, own, blocks)
        arguments = {**found.arguments, "rewrites": ",".join(rewrites)}
        return replace(found, arguments=arguments)

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        """That of a process alone, which is more than one of several needs."""
        return self.model.scratch_bytes(component, sizes, precision, backend)

    def tokens(self, component: str, sizes: Mapping[str, int]) -> int:
        """The number of tokens that can be shared: a frame's, where each frame has a timestep of its own."""
        places = sizes["latent_height"] * sizes["latent_width"] // PATCH**2
        timestep = next(each for each in self.components[component].spec.inputs if each.name == "timestep")
        return places if "frames" in timestep.dims else places * sizes["frames"]


class _Load:
    """Loads a denoiser over a part of the tokens."""

    def __init__(self, component: Component) -> None:
        self._component = component

    def __call__(self, precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
        own = tuple(name for name in rewrites if name != sliced.SLICED)
        return sliced.sliced(self._component.load(precision, own))


def _named(spec: NetworkSpec) -> NetworkSpec:
    """The network under a name of its own: its code is that of the whole one and of this module's."""
    return replace(spec, code=digest([spec.code, parts.code_of(sliced.__name__)])[:16])
