"""Abilities of this machine: its device, libraries and backends, and the backend that `auto` takes, with the reason."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from ...common.device import cuda_arch
from ...engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from ...engine_builder.graph.quantize import LEAST_ARCH
from ...pipeline.fused.kernels import flash_attention
from ..engines.policy import EnginePolicy
from .table import Table

PACKAGES = (
    "torch", "triton", "diffusers", "transformers", "safetensors", "numpy", "onnx", "onnxscript", "onnxruntime",
    "onnxruntime-gpu", "tensorrt", "tensorrt-rtx", "fa3-fwd", "av",
)  # fmt: skip
PIP = "pip install "
GIB = 1 << 30
CAN, CANNOT, TAKEN, BY_NAME = "can run", "cannot run", "auto takes this", "can run, by its name alone"


@dataclass(frozen=True)
class BackendState:
    """A backend here: whether it can run, whether `auto` takes it, the reason, and the line that installs it."""

    name: str
    usable: bool
    chosen: bool
    automatic: bool
    reason: str
    install: str

    @property
    def verdict(self) -> str:
        """The state in a few words."""
        if self.chosen:
            return TAKEN
        return (CAN if self.automatic else BY_NAME) if self.usable else CANNOT


@dataclass(frozen=True)
class Diagnosis:
    """All findings. `install` is the one line that installs a faster backend than `auto` has, if there is one."""

    device: str
    abilities: str
    versions: tuple[tuple[str, str], ...]
    backends: tuple[BackendState, ...]
    why: str
    install: str
    builds: str = ""
    """Line on engines that are being built, or wait to be."""
    optional: str = ""
    """The line that installs a package with which engines of some models are faster here, and which models."""

    @property
    def line(self) -> str:
        """The main finding, in a few words."""
        chosen = next(state.name for state in self.backends if state.chosen)
        return f"auto takes {chosen}" + ("; a faster one can be installed" if self.install else "")

    @property
    def table(self) -> Table:
        """The findings, a row each."""
        rows = [("device", "", self.device), ("it can", "", self.abilities)]
        rows += [(f"backend {state.name}", state.verdict, state.reason) for state in self.backends]
        rows += [("why", "", self.why), ("to install", "", self.install or "nothing: none is faster here")]
        rows += [("faster still", "", self.optional)] if self.optional else []
        rows += [("engines", "", self.builds)] if self.builds else []
        rows.append(("packages", "", ", ".join(f"{name} {number}" for name, number in self.versions)))
        return Table(("what", "state", "found"), tuple(rows))


def diagnose(device: torch.device, builds: str = "") -> Diagnosis:
    """Looks at the device, the installed packages and every backend; runs and changes nothing.

    `builds` is the host's line on engines that are built while it has nothing to run.
    """
    chosen = choose_backend(AUTO, device).name
    found = {name: backend.availability(device) for name, backend in BACKENDS.items()}
    states = tuple(
        BackendState(
            name, state.ok, name == chosen, BACKENDS[name].is_automatic(device), state.reason, _line(state.install)
        )
        for name, state in found.items()
    )
    return Diagnosis(
        describe_device(device),
        _abilities(device),
        installed_versions(),
        states,
        _why(states),
        _install(states),
        builds,
        _optional(device),
    )


def describe_device(device: torch.device) -> str:
    """PyTorch and the device that it computes on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no CUDA GPU"
    return f"PyTorch {torch.__version__} on {device} ({name})"


def installed_versions(names: tuple[str, ...] = PACKAGES) -> tuple[tuple[str, str], ...]:
    """The packages of these names that are installed, with their versions."""
    found = []
    for name in names:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return tuple(found)


def _abilities(device: torch.device) -> str:
    """Architecture, memory, and the precisions that are worth using."""
    auto = f"precision auto is {EnginePolicy().precision_on(device)}"
    if device.type != "cuda":
        return f"{torch.get_num_threads()} threads of {torch.backends.cpu.get_cpu_capability()}; fp32; {auto}"
    free, total = torch.cuda.mem_get_info(device)
    precisions = ["fp32", "fp16"] + ["bf16"] * torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.cuda.get_device_capability(device)
    precisions += [name for name, least in LEAST_ARCH.items() if capability >= divmod(least, 10)]
    memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return f"{cuda_arch(device)}; {memory}; {', '.join(precisions)}; {auto}"


def _why(states: tuple[BackendState, ...]) -> str:
    """Reason of `auto`'s choice: the backends before the chosen one, and the obstacle to each of them."""
    names = [state.name for state in states]
    chosen = next(state for state in states if state.chosen)
    passed = [
        f"{state.name} {'is taken by its name alone here' if state.usable else 'cannot run'}"
        for state in states[: names.index(chosen.name)]
    ]
    before = f"; {', '.join(passed)}" if passed else ""
    return f"auto goes through {', '.join(names)} and takes the first that can run: {chosen.name}{before}"


def _install(states: tuple[BackendState, ...]) -> str:
    """The line for the first backend that would come before the chosen one, if a line helps."""
    for state in states:
        if state.chosen:
            return ""
        if not state.usable and state.automatic and state.install:
            return state.install
    return ""


def _optional(device: torch.device) -> str:
    """The line for FlashAttention-3, where it serves the GPU and is missing."""
    if not flash_attention.is_wanted(device):
        return ""
    return f"Wan's engines with FlashAttention-3: {_line(flash_attention.INSTALL)}"


def _line(install: str) -> str:
    """A line of pip for the very Python that runs this; others as they are."""
    return f'"{sys.executable}" -m {install}' if install.startswith(PIP) else install
