"""What engines are found for: networks by name, and the way to each in this process and in a child."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import ClassVar, Protocol, TypeVar

from ...common.network_source import NetworkSource
from ...pipeline.models.latent_space import LatentSpace
from ...pipeline.models.model_networks import Component


class Networks(Protocol):
    """What `Engines` asks of a model; a `VideoModel` is one, and says what each of these is.

    A network that somebody else lends, and has on the device already, has no `denoisers`.
    """

    denoisers: ClassVar[tuple[str, ...]]
    engine_components: ClassVar[tuple[str, ...]]
    build_order: ClassVar[tuple[str, ...]]
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]]
    latent: ClassVar[LatentSpace]

    @cached_property
    def components(self) -> Mapping[str, Component]: ...

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]: ...

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = ()) -> NetworkSource: ...

    def scratch_bytes(
        self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager"
    ) -> int: ...


AnyNetworks = TypeVar("AnyNetworks", bound=Networks)
