"""ONNX files in models/onnx, and what a look at each has found."""

from __future__ import annotations

from pathlib import Path

import comfy.model_management as memory
import folder_paths

from ...common.errors import BackendUnavailableError, InputError
from ...engine_builder.backends.base import import_fault
from ...pipeline.models.checkpoints.file_digests import TABLE
from ...pipeline.pictures.contract import Contract
from ...pipeline.pictures.look import look
from ...runtime.filters.onnx_picture import OnnxPictureNetworks
from .folders import ONNX
from .safe_name import listed

_FOUND: dict[tuple[str, str, str], Contract] = {}
"""Contracts by the file's digest, and the layout and the output that were asked for."""


def onnx_files() -> dict[str, Path]:
    """Every .onnx file in models/onnx by its relative name."""
    names = (name for name in folder_paths.get_filename_list(ONNX) if name.lower().endswith(".onnx"))
    found = {name: folder_paths.get_full_path(ONNX, name) for name in names}
    return {name: Path(path) for name, path in found.items() if path is not None}


def onnx_file(name: object) -> Path:
    """A file by its name; no path is made from a workflow's text. Raises InputError."""
    found = onnx_files()
    if path := listed(name, found):
        return path
    root = folder_paths.get_folder_paths(ONNX)[0]
    raise InputError(
        f"There is no ONNX file {str(name)[:80]!r} in {root}: expected a .onnx file there, found {len(found)} others."
    )


def picture_networks(path: Path, layout: str, output: str, range_in: str, range_out: str) -> OnnxPictureNetworks:
    """The network of a file, looked at once; raises InputError where it maps no picture to a picture or a mask."""
    fault = import_fault(("onnx", "onnxruntime"))
    if fault is not None:
        raise BackendUnavailableError(f"ONNX files need {fault} To install it: pip install onnx onnxruntime")
    sha256 = TABLE.find([path]) or TABLE.take([path], lambda _: memory.throw_exception_if_processing_interrupted())
    key = (sha256, layout, output)
    if key not in _FOUND:
        _FOUND[key] = look(path, layout, output, memory.throw_exception_if_processing_interrupted)
    return OnnxPictureNetworks(path, sha256, _FOUND[key].with_ranges(range_in, range_out))
