"""Interface of the networks that engines are found for: networks by name, with loaders here and in a child process."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Protocol, TypeVar

from ...common.network_source import NetworkSource
from ...pipeline.models.checkpoints.diffusers_folder import BlockList
from ...pipeline.models.latent_space import LatentSpace
from ...pipeline.models.model_networks import Component


class Networks(Protocol):
    """Interface of a model for `Engines`; a `VideoModel` implements it and documents each member.

    A network that another owner lends, and has on the device already, has no `denoisers`.
    """

    denoisers: ClassVar[tuple[str, ...]]
    engine_components: ClassVar[tuple[str, ...]]
    build_order: ClassVar[tuple[str, ...]]
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]]
    bf16_rewrites: ClassVar[frozenset[str]]
    instead_of_fp16: ClassVar[Mapping[str, str]]
    block_lists: ClassVar[Mapping[str, BlockList]]
    latent: ClassVar[LatentSpace]

    @cached_property
    def components(self) -> Mapping[str, Component]: ...

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]: ...

    def roundings(self, component: str, precision: str, backend: str) -> tuple[str, ...]: ...

    def source(
        self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0
    ) -> NetworkSource: ...

    def scratch_bytes(
        self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager"
    ) -> int: ...


class OtherNetworks:
    """Base of networks that are no part of a video model: none runs at the steps of a clip, none is rewritten."""

    denoisers: ClassVar[tuple[str, ...]] = ()
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    bf16_rewrites: ClassVar[frozenset[str]] = frozenset()
    instead_of_fp16: ClassVar[Mapping[str, str]] = {}
    block_lists: ClassVar[Mapping[str, BlockList]] = {}
    latent: ClassVar[LatentSpace] = LatentSpace()

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        return ()

    def roundings(self, component: str, precision: str, backend: str) -> tuple[str, ...]:
        return ()


AnyNetworks = TypeVar("AnyNetworks", bound=Networks)
