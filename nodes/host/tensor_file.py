"""A network's tensors as a file that an engine's build reads, in ComfyUI's temporary folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import folder_paths
import torch

from ...common.atomic_file import atomic_file
from .owned import Owned, state

FILES: Owned[tuple[Path, str]] = Owned()
"""The file and the digest of a network's own tensors."""


def file_of(network: torch.nn.Module) -> tuple[Path, str]:
    """As `tensor_file`, of a network's own tensors; read again only where they may have changed."""
    found = FILES.get(network, state(network), lambda: tensor_file(network.state_dict()))
    return found if found[0].is_file() else tensor_file(network.state_dict())


def tensor_file(tensors: Mapping[str, torch.Tensor]) -> tuple[Path, str]:
    """A safetensors file of the tensors, named by their digest, written once; and the digest."""
    from safetensors.torch import save_file

    whole = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    sha = hashlib.sha256()
    for name, value in sorted(whole.items()):
        sha.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    path = Path(folder_paths.get_temp_directory()) / "i2v_networks" / f"{sha.hexdigest()}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            save_file(whole, temporary)
    return path, sha.hexdigest()
