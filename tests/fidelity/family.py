"""What the contract suite needs to know of a family, and ways to change its clips and sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint

from ..helpers.agreement import Sizes
from ..helpers.reference_clip import Clip

SEED = 7


@dataclass(frozen=True)
class Family:
    """What the contract needs to know of one."""

    write: Callable[[Path], Path]
    """Writes its tiny checkpoint into a folder that is not there."""
    published: Callable[[Path], Any]
    """Diffusers' own pipeline over that checkpoint."""
    ask: Callable[[Clip], dict[str, Any]]
    """What that pipeline is called with for a clip, picture, seed and output aside."""
    clip: Clip
    """The clip that the controls start from."""
    sizes: tuple[tuple[tuple[int, int], int], ...]
    """Width and height, and frames, at which both must agree."""
    guidance: tuple[dict[str, Any], ...]
    """Guidance at which they must, as changes of `Denoising`."""
    same: tuple[Clip, ...]
    """Other ways to say `clip`."""
    wrong: Mapping[str, Clip]
    """Clips that are not `clip`, and must be seen not to be."""
    layers: tuple[str, ...]
    """Layers of the part `network` each of which counts."""
    network: str
    chunks: tuple[int, ...]
    """Frames decoded at once."""
    frames_first: bool = False
    """Whether the published latents are [frames, channels, h, w], and not [channels, frames, h, w]."""
    chunk_decides: bool = False
    """Whether chunks of another size give another clip."""
    tolerance: float = 1e-5
    """The greatest difference, as a part of the greatest latent (or of 1), that is still the same clip."""
    engines: Mapping[str, list[Sizes]] = field(default_factory=dict)
    """Sizes that no export has traced, by component."""
    fused: Mapping[str, list[Sizes]] = field(default_factory=dict)
    """Sizes at which components with rewrites are compared with plain ones."""
    wide: Callable[[Path], Path] = write_tiny_checkpoint
    """Writes a tiny checkpoint whose heads TensorRT has attention kernels for."""
    targets: tuple[str, ...] = ()
    """Components that TensorRT-RTX builds for GPUs that are not here."""
    decoded_frames: int = 5
    """Length of the clip that is decoded in chunks."""
    small: Sizes = field(default_factory=lambda: {**volume(2, 4, 8, 16), **chunk(4, 8, 16)})
    """Sizes that engines are built for."""
    moved: Sizes = field(default_factory=lambda: volume(2, 3, 8, 12))
    """Sizes at which each input of a denoiser's engine is moved."""


def changed(clip: Clip, **changes: Any) -> Clip:
    """The clip with other fields of its request, its denoising, or its sampler."""
    request, denoising = (
        {k: v for k, v in changes.items() if hasattr(part, k)} for part in (clip.request, clip.denoising)
    )
    return Clip(replace(clip.request, **request), replace(clip.denoising, **denoising))


def of_size(clip: Clip, size: tuple[int, int], frames: int) -> Clip:
    return changed(clip, width=size[0], height=size[1], num_frames=frames)


def sampler(clip: Clip, **changes: Any) -> Clip:
    return changed(clip, sampler=replace(clip.denoising.sampler, **changes))


def plane(height: int, width: int) -> Sizes:
    return {"latent_height": height, "latent_width": width}


def volume(batch: int, frames: int, height: int, width: int) -> Sizes:
    return {"batch": batch, "frames": frames, **plane(height, width)}


def chunk(count: int, height: int, width: int) -> Sizes:
    return {"chunk": count, **plane(height, width)}
