"""The files of Stable Video Diffusion and Wan that a user names for a conversion: all of one model, each of use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ...common.errors import CheckpointError
from ..models.checkpoints.single_file import A14B, DENOISER, SingleFile, single_file
from ..models.single_files import ROLES, Sources, find_sources

USUALLY = {"wan2.2_vae.safetensors": "Comfy-Org/Wan_2.2_ComfyUI_Repackaged"}
USUALLY_WAN, USUALLY_SVD = "Comfy-Org/Wan_2.1_ComfyUI_repackaged", "stabilityai/stable-video-diffusion-img2vid-xt"


def named_sources(files: Sequence[Path]) -> Sources | None:
    """The file of each network, where one of the files holds a denoiser that is known; else None.

    Raises CheckpointError for networks that are missing, that two of the files hold, and for a file of no use.
    """
    held = {path: found for path in files if (found := single_file(path))}
    denoisers = {path: found for path, found in held.items() if found.model}
    if not denoisers:
        return None
    first = next(iter(denoisers.values()))
    _check_one_model(first, denoisers)
    sources = find_sources(first.path, files, advice)
    for path in files:
        if path not in sources.paths:
            raise CheckpointError(_of_no_use(path, held.get(path), sources, first))
    return sources


def advice(folder: str, usual: str) -> str:
    """What to do about a file that is missing, by ComfyUI's folder for it and its usual name."""
    place = USUALLY.get(usual, USUALLY_WAN if usual.endswith(".safetensors") else USUALLY_SVD)
    return f"name {usual} too, usually in {place}"


def _check_one_model(first: SingleFile, denoisers: Mapping[Path, SingleFile]) -> None:
    other = next((found for found in denoisers.values() if found.model != first.model), None)
    if other is not None:
        raise CheckpointError(
            f"Expected the files of one model, found {first.path.name} of {first.title} and {other.path.name} of "
            f"{other.title}."
        )
    if len(denoisers) > 1 and first.model != A14B:
        names = " and ".join(path.name for path in denoisers)
        raise CheckpointError(f"Expected one denoiser of {first.title}, found {names}: name one of them.")


def _of_no_use(path: Path, found: SingleFile | None, sources: Sources, first: SingleFile) -> str:
    """Sentence on a file that no network is taken from."""
    for part, other in sources.files.items():
        role = ROLES[part]
        if role != DENOISER and found is not None and found.network(role) is not None:
            return f"Expected one {role} for {first.title}, found {other.name} and {path.name}: name one of them."
    return f"{path}: expected a network of {first.title}, found tensors that it has no use for."
