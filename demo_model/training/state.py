"""A training run's state on disk: tensors in safetensors shards, the rest in one JSON file written last."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .networks import write_text

SHARD_BYTES = 15 * 2**20


def save_tensors(folder: Path, stem: str, tensors: dict[str, Tensor], dtype: torch.dtype | None = None) -> list[str]:
    """Writes shards of at most 15 MiB and returns their names; floats are cast to dtype if one is given."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, shard in enumerate(_shards(tensors, dtype)):
        name = f"{stem}-{number}.safetensors"
        part = folder / f"{name}.part"
        save_file(shard, part)
        os.replace(part, folder / name)
        names.append(name)
    return names


def _shards(tensors: dict[str, Tensor], dtype: torch.dtype | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = SHARD_BYTES
    for key, value in tensors.items():
        kept = value.detach().to("cpu", dtype if dtype and value.is_floating_point() else value.dtype).contiguous()
        size = kept.numel() * kept.element_size()
        if size > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][key] = kept
        room -= size
    return shards


def load_tensors(folder: Path, names: list[str]) -> dict[str, Tensor]:
    """Reads shards back into one dictionary, on the CPU."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= load_file(folder / name)
    return tensors


def save_state(folder: Path, groups: dict[str, dict[str, Tensor]], meta: dict[str, Any], compact: bool) -> None:
    """Writes a state: a crash before the JSON file is replaced leaves the former state whole.

    compact casts to half precision and drops the optimizer's moments: a copy small enough to carry.
    """
    kept = {name: group for name, group in groups.items() if not (compact and name == "moments")}
    dtype = torch.float16 if compact else None
    stems = {name: f"{name}-{meta['step']:06d}" for name in kept}
    files = {name: save_tensors(folder, stems[name], group, dtype) for name, group in kept.items()}
    write_text(folder / "state.json", json.dumps({**meta, "files": files}, indent=1) + "\n")
    current = {name for names in files.values() for name in names}
    for path in folder.glob("*.safetensors"):
        if path.name not in current:
            path.unlink()


def load_meta(folder: Path) -> dict[str, Any] | None:
    """The JSON part of a state, or None where there is none."""
    path = folder / "state.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None
