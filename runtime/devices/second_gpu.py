"""A second GPU for a clip: the one that takes half of the work, or the reason why none does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common.device import cuda_arch
from ...common.errors import InputError
from ...engine_builder.backends.registry import AUTO

if TYPE_CHECKING:
    import torch

ONE, TWO = "1", "2"
DEVICES = (AUTO, ONE, TWO)
"""The user's choices. `auto` is one device until two have been measured to be faster."""
LEAST_SHARE = 0.95
"""The share of the first GPU's memory that a second one has at least: cards of one kind report slightly different
totals."""


@dataclass(frozen=True)
class Gpu:
    """A visible GPU: its name, its architecture such as `sm_90`, and its memory in bytes."""

    device: torch.device
    name: str
    arch: str
    total_bytes: int


@dataclass(frozen=True)
class Second:
    """The second device, or None and the reason why there is none as a sentence; both None where none is wanted."""

    device: torch.device | None = None
    reason: str | None = None


def visible_gpus() -> list[Gpu]:
    """All CUDA GPUs that this process sees, in their order."""
    import torch

    if not torch.cuda.is_available():
        return []
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    found = [(device, torch.cuda.get_device_properties(device)) for device in devices]
    return [Gpu(device, each.name, cuda_arch(device) or "", each.total_memory) for device, each in found]


def choose_second(wish: str, first: torch.device, gpus: Sequence[Gpu]) -> Second:
    """The GPU that shares a clip with the first one; raises InputError for a wish that is none of `DEVICES`.

    It is of the first one's architecture, so that one engine serves both, and has as much memory.
    """
    if wish not in DEVICES:
        raise InputError(f"The number of devices is one of {', '.join(DEVICES)}, found {wish!r:.80}.")
    if wish != TWO:
        return Second()
    mine = next((gpu for gpu in gpus if gpu.device == first), None)
    if mine is None:
        return Second(reason=f"Two devices are for CUDA GPUs, found {first}: one device makes the clip.")
    others = [gpu for gpu in gpus if gpu.device != first]
    if not others:
        return Second(reason="Expected a second GPU, found one: one device makes the clip.")
    refusals = {gpu.device: _refusal(mine, gpu) for gpu in others}
    chosen = next((gpu.device for gpu in others if refusals[gpu.device] is None), None)
    if chosen is not None:
        return Second(chosen)
    return Second(reason=f"{' '.join(filter(None, refusals.values()))} One device makes the clip.")


def _refusal(first: Gpu, other: Gpu) -> str | None:
    """Reason why a GPU cannot share a clip with the first one; None where it can."""
    if other.arch != first.arch:
        return f"Expected a second GPU of {first.arch}, found {other.device} ({other.name}) of {other.arch}."
    if other.total_bytes < LEAST_SHARE * first.total_bytes:
        wanted, found = first.total_bytes / 2**30, other.total_bytes / 2**30
        return f"Expected a second GPU of {wanted:.1f} GiB, found {other.device} ({other.name}) of {found:.1f} GiB."
    return None
