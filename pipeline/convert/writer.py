"""A safetensors file written tensor by tensor, so that no more than one of them is in memory."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch

from ...common.atomic_file import atomic_file
from ...common.errors import CheckpointError
from ..models.checkpoints.tensor_files import Tensors

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.float64: "F64", torch.int64: "I64"}
ALIGNMENT = 8


def write_tensors(path: Path, tensors: Tensors) -> None:
    """Writes the file whole or not at all, each tensor in the precision that it has.

    Raises StorageError when the disk refuses, CheckpointError for a precision that networks are not loaded from.
    """
    names = sorted(tensors)
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        stream.write(_header(names, tensors))
        for name in names:
            tensor = tensors[name].contiguous()
            tensor.flatten().view(torch.uint8).numpy().tofile(stream)


def _header(names: list[str], tensors: Tensors) -> bytes:
    """The table of all tensors, with its length before it and blanks behind it."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"Expected {name} in fp32, fp16 or bf16, found {str(tensor.dtype)[6:]}.")
        start, end = end, end + tensor.nbytes
        table[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return struct.pack("<Q", len(text)) + text
