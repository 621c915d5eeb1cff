"""Messages between processes: JSON and named tensors, written to a stream of bytes. Nothing in them is code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import torch

_LENGTHS = struct.Struct("<QQ")
Message = tuple[dict[str, Any], dict[str, "torch.Tensor"]]


def write_message(stream: BinaryIO, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> None:
    """Writes a message with tensors, which are in host memory and contiguous; raises OSError for a closed stream."""
    text, body = json.dumps(data).encode(), b""
    if tensors:
        from safetensors.torch import save

        body = save(dict(tensors))
    stream.write(_LENGTHS.pack(len(text), len(body)))
    stream.write(text)
    stream.write(body)
    stream.flush()


def read_message(stream: BinaryIO) -> Message | None:
    """The next message; None at the end of the stream, also in the middle of a message."""
    lengths = stream.read(_LENGTHS.size)
    if len(lengths) < _LENGTHS.size:
        return None
    text_bytes, body_bytes = _LENGTHS.unpack(lengths)
    text, body = stream.read(text_bytes), stream.read(body_bytes)
    if len(text) < text_bytes or len(body) < body_bytes:
        return None
    if not body:
        return json.loads(text), {}
    from safetensors.torch import load

    return json.loads(text), load(body)
