"""The installed TensorRT, and the few places where its three libraries differ.

`tensorrt` 10 and 11 and `tensorrt_rtx` share one API as long as networks are strongly typed and the `_v2`
names are used; each remaining difference is a small function here.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

log = logging.getLogger(__name__)

PLAN = "engine.plan"
"""The engine's file in its folder."""
RTX, FULL = "tensorrt_rtx", "tensorrt"
RTX_ARCHS = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_120", "sm_121")
"""GPU architectures that TensorRT-RTX builds for and runs on; Hopper is not among them."""
_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")


@dataclass(frozen=True)
class Library:
    """An imported TensorRT: its module, and whether it is the RTX one."""

    module: Any
    is_rtx: bool

    @property
    def version(self) -> str:
        """Name and version, as an engine's target holds them."""
        return f"{RTX if self.is_rtx else FULL} {self.module.__version__}"


def choose_library(arch: str) -> str | None:
    """The module to use for an architecture such as `sm_89`: RTX where it serves it, else the full one."""
    names = (RTX, FULL) if arch in RTX_ARCHS else (FULL,)
    return next((name for name in names if importlib.util.find_spec(name) is not None), None)


def install_line(name: str) -> str:
    """Command that installs the module for the CUDA that PyTorch was built with: the plain packages are for CUDA 13."""
    import torch

    package = name.replace("_", "-")
    return f"pip install {package}-cu12" if (torch.version.cuda or "").startswith("12.") else f"pip install {package}"


@lru_cache(maxsize=2)
def load_library(name: str) -> Library:
    """Imports the module; ImportError and OSError are its own."""
    return Library(importlib.import_module(name), name == RTX)


def aim(library: Library, config: Any, arch: str) -> bool:
    """Sets the architecture that the engine is built for; the full library builds for the GPU at hand only."""
    if not library.is_rtx:
        return True
    config.num_compute_capabilities = 1
    capability = getattr(library.module.ComputeCapability, arch.replace("_", "").upper())
    return bool(config.set_compute_capability(capability, 0))


def borrow_timing_cache(library: Library, config: Any, kept: bytes | None) -> None:
    """Gives the full library the `kept` timing cache, so that no layer is measured twice; RTX measures none."""
    if library.is_rtx:
        return
    for data in (kept, b"") if kept else (b"",):
        cache = config.create_timing_cache(data)
        if cache is not None and config.set_timing_cache(cache, False):
            return
        log.info("The timings that were kept are of another GPU or version: layers are measured again.")


def timing_bytes(library: Library, config: Any) -> bytes | None:
    """The full library's timing cache so far; None without such a cache, or for an empty one."""
    cache = None if library.is_rtx else config.get_timing_cache()
    data = None if cache is None else cache.serialize()
    return None if data is None else bytes(data) or None


def make_context(
    library: Library, engine: Any, cache: bytes | None = None, *, streams: bool = False
) -> tuple[Any, Any]:
    """An execution context (None if it failed), and RTX's runtime cache if it has one, filled from `cache`.

    The caller gives the scratch memory: by itself the context would take that of the greatest shape of all profiles. An
    engine that `streams` its weights is not captured into CUDA graphs.
    """
    trt = library.module
    ours = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    if not library.is_rtx:
        return engine.create_execution_context(ours), None
    config = engine.create_runtime_config()
    if config is None:
        return None, None
    config.set_execution_context_allocation_strategy(ours)
    # EAGER waits for the shape's own kernels instead of answering with slow ones at first.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    if not streams:
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    runtime_cache = _runtime_cache(config, cache)
    return engine.create_execution_context(config), runtime_cache


def _runtime_cache(config: Any, cache: bytes | None) -> Any:
    """A cache for the configuration, filled with the kept kernels if they still fit; None where the library refuses."""
    runtime_cache = config.create_runtime_cache()
    if runtime_cache is None:
        return None
    if cache is not None and not runtime_cache.deserialize(cache):
        log.info("The kernels that were kept are of another GPU, driver or version: they are compiled again.")
    return runtime_cache if config.set_runtime_cache(runtime_cache) else None


def kernel_bytes(runtime_cache: Any) -> bytes | None:
    """Kernels that RTX has compiled so far; None without such a cache, or for an empty one."""
    data = None if runtime_cache is None else runtime_cache.serialize()
    return None if data is None else bytes(data) or None


def make_logger(library: Library) -> Any:
    """A TensorRT logger into `logging` that remembers the last error, for TensorRT raises none, and the greatest
    memory for activations that the log names for a profile.
    """
    trt = library.module
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.DEBUG,
    }

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last_error = "no reason was given"
            self.activation_bytes: int | None = None

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity)
            if level is not None:
                log.log(level, "TensorRT: %s", message)
            if level == logging.ERROR:
                self.last_error = message
            told = _ACTIVATIONS.search(message)
            if told is not None:
                self.activation_bytes = max(self.activation_bytes or 0, int(told[1]))

    return Logger()
