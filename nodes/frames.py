"""What the nodes over frames share: their sockets, and the engines of their networks."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch.nn import Module

from ..engine_builder.backends.registry import AUTO
from ..runtime.engines.engine_set import Engines
from ..runtime.engines.networks import AnyNetworks
from ..runtime.engines.policy import EnginePolicy
from .host import folders, memory, ui
from .host.idle import idle_builds
from .host.owned import Owned

ENGINES: Owned[Engines[Any]] = Owned()
"""By the network of ComfyUI's that they are for."""


def frames_input() -> io.MultiType.Input:
    """The frames, an IMAGE or a VIDEO."""
    return io.MultiType.Input("frames", types=[io.Image, io.Video], tooltip="An IMAGE, one a frame, or a VIDEO.")


def fps_input() -> io.Float.Input:
    """Frames per second, which an IMAGE lacks."""
    return io.Float.Input(
        "fps",
        default=16.0,
        min=0.01,
        max=1000.0,
        step=0.01,
        tooltip="Frames per second of an IMAGE; a VIDEO has its own.",
    )


def engines_of(
    model: AnyNetworks, precision: str, backend: str, on_missing: str, weights: str = AUTO, owner: Any = None
) -> Engines[AnyNetworks]:
    """Engines of one picture size each, for a clip's frames are all of one size.

    With an `owner`, the network of ComfyUI's that they are for, the next prompt finds them loaded.
    """
    policy, device = EnginePolicy(backend, precision, "exact", on_missing, weights=weights), memory.device()

    def made() -> Engines[AnyNetworks]:
        manager = memory.HostMemoryManager()
        return Engines(model, folders.engine_store(), policy, device, manager, ui.tell_build, idle_builds())

    return ENGINES.get(owner, (model, policy, device), made) if isinstance(owner, Module) else made()
