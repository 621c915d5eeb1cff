"""The backends by name, and which of them `auto` takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...common.errors import BackendUnavailableError, InputError
from .base import Backend
from .eager import EagerBackend
from .inductor.backend import InductorBackend
from .onnxruntime import OnnxRuntimeBackend
from .tensorrt.backend import TensorRTBackend

if TYPE_CHECKING:
    import torch

AUTO = "auto"
BACKENDS: dict[str, Backend] = {
    backend.name: backend for backend in (TensorRTBackend(), InductorBackend(), OnnxRuntimeBackend(), EagerBackend())
}
"""In the order in which `auto` tries them: the first that serves the device, and may be chosen for it, is taken."""


def choose_backend(name: str, device: torch.device) -> Backend:
    """The backend of that name, or for `auto` the first that serves the device.

    Raises InputError for an unknown name, BackendUnavailableError with the reason and the line to install
    when a named backend is not there.
    """
    if name == AUTO:
        candidates = (backend for backend in BACKENDS.values() if backend.is_automatic(device))
        return next(backend for backend in candidates if backend.availability(device).ok)
    if name not in BACKENDS:
        raise InputError(f"The backend is one of {', '.join([AUTO, *BACKENDS])}, found {name!r:.80}.")
    found = BACKENDS[name].availability(device)
    if not found.ok:
        raise BackendUnavailableError(found.sentence)
    return BACKENDS[name]
