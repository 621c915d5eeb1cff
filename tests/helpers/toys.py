"""A network of four numbers and a backend that needs no exporter: whole engines in milliseconds."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, Guidance, NetworkSpec, Scope, Target, TensorSpec
from i2v_tensorrt.engine_builder.backends.base import Availability, Backend, BuildTarget, Report, Runner
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest, Compiled, compile_engine
from i2v_tensorrt.engine_builder.store.manifest import FileDigest, Manifest, ParityReport, file_digest
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

if TYPE_CHECKING:
    import pytest

CPU = torch.device("cpu")
VOLUME = ("batch", 4, "frames", "latent_height", "latent_width")
LIMITS = ShapeProfile(
    {
        "batch": DimRange(1, 2, 2),
        "frames": DimRange(1, 4, 16),
        "latent_height": DimRange(4, 8, 32, 2),
        "latent_width": DimRange(4, 8, 32, 2),
    }
)
TARGET = Target("toy", "1.0", "cpu", "x86_64", "toy exporter 1")


class ToyNetwork(torch.nn.Module):
    """Sees every axis: a convolution over frames and places, scaled for each branch."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(4, 4, 3, 3, 3, generator=generator) / 10, requires_grad=False)

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        mixed = torch.nn.functional.conv3d(sample, self.weight, padding=1)
        return torch.tanh(mixed) * strength.to(sample.dtype)[:, :, None, None, None]


class Computed(torch.nn.Module):
    """A network of ToyNetwork's inputs that computes what it is given to compute."""

    def __init__(self, compute: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> Any:
        return self.compute(sample, strength)


def toy_network(**changes: Any) -> NetworkSpec:
    """The specification of ToyNetwork, with some fields changed."""
    spec = NetworkSpec(
        family="toy",
        component="core",
        config_sha256="c" * 64,
        weights_sha256="a" * 64,
        inputs=(
            TensorSpec("sample", VOLUME),
            TensorSpec("strength", ("batch", 4), "float32", Scope.CLIP, Guidance.PER_BRANCH, span=(0.5, 2.0)),
        ),
        outputs=(TensorSpec("prediction", VOLUME),),
        limits=LIMITS,
    )
    return replace(spec, **changes)


def toy_spec(profile: ShapeProfile = LIMITS, precision: str = "fp32", **changes: Any) -> EngineSpec:
    """ToyNetwork at a profile and a precision; `changes` are fields of its NetworkSpec."""
    return EngineSpec(toy_network(**changes), profile, precision)


@dataclass(frozen=True)
class ToySource:
    """Stands for a `NetworkSource`: makes the network here instead of in a child."""

    make: Callable[[], torch.nn.Module] = ToyNetwork
    size_bytes: int = 0
    has_weights: bool = True

    def load(self, *, hollow: bool = False) -> torch.nn.Module:
        made = self.make().eval()
        return made.to("meta") if hollow else made


def publish(store: EngineStore, spec: EngineSpec, files: dict[str, bytes], target: Target = TARGET) -> Plan:
    """Puts an engine of the given files into the store without building it."""
    with store.staging() as folder:
        digests: dict[str, FileDigest] = {}
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
            digests[name] = file_digest(folder / name)
        verdict = ParityReport(1.0, 120.0, 1e-6, True, ({"batch": 1}, {"batch": 2}))
        return store.publish(folder, Manifest(spec, target, digests, verdict, 1.5, "2026-01-02T03:04:05+00:00"))


class ToyRunner(Runner):
    """ToyNetwork with its weights read from a plan, and whatever fault the backend gives it."""

    backend: ClassVar[str] = "toy"

    def __init__(self, plan: Plan, spec: EngineSpec, device: torch.device, fault: Fault) -> None:
        super().__init__(spec, device)
        self._plan, self._fault = plan, fault
        self._network: ToyNetwork | None = None

    @property
    def is_loaded(self) -> bool:
        return self._network is not None

    @property
    def memory_bytes(self) -> int:
        return self._plan.manifest.size_bytes

    def load(self) -> None:
        self._plan.verify()
        values = json.loads((self._plan.folder / ToyBackend.FILE).read_text())
        self._network = ToyNetwork()
        self._network.weight.copy_(torch.tensor(values))

    def unload(self) -> None:
        self._network = None

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if self._network is None:
            raise EngineError("not loaded")
        return {"prediction": self._fault(self._network(**inputs))}


Fault = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class ToyBackend(Backend):
    """Writes the weights as JSON; remembers its builds, and can misbehave in each of its duties."""

    FILE: ClassVar[str] = "weights.json"
    name: ClassVar[str] = "toy"
    available: Availability = field(default_factory=lambda: Availability(True, "The toy is always there."))
    while_building: Callable[[Path], None] = lambda folder: None
    fault: Fault = lambda prediction: prediction
    version: str = "1.0"
    builds_log: Path | None = None
    builds_done: list[EngineSpec] = field(default_factory=list)

    def availability(self, device: torch.device) -> Availability:
        return self.available

    def target(self, device: torch.device) -> Target:
        return replace(TARGET, backend_version=self.version, device=device.type)

    def build(self, network: torch.nn.Module, spec: EngineSpec, folder: Path, report: Report) -> dict[str, str]:
        report("write weights", 0.1)
        (folder / self.FILE).write_text(json.dumps(network.state_dict()["weight"].tolist()))
        self.while_building(folder)
        report("write weights", 0.7)
        self.builds_done.append(spec)
        if self.builds_log is not None:
            with self.builds_log.open("a") as stream:
                stream.write(f"{os.getpid()}\n")
        return {"made by": "toy"}

    def load(self, plan: Plan | None, spec: EngineSpec, network: Any, device: torch.device) -> Runner:
        if plan is None:
            raise EngineError("The toy needs a plan.")
        return ToyRunner(plan, spec, device, self.fault)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by relative name."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def let_onnxruntime_be_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime stands in for TensorRT, which cannot run here: it takes a calibration, and makes nothing of it."""

    def aimed(self: OnnxRuntimeBackend, target: BuildTarget) -> OnnxRuntimeBackend:
        return self

    monkeypatch.setattr(OnnxRuntimeBackend, "for_target", aimed)


class InProcess(BuildProcess):
    """Stands for a child process: compiles here, where the toys are known."""

    def compile(self, request: BuildRequest, folder: Path, log_path: Path, report: Report) -> Compiled:
        return compile_engine(request, folder, report)


FILES = {"network.bin": b"weights " * 1000, "data/more.bin": b"more"}
"""An engine that is never run."""


def names(folder: Path) -> list[str]:
    """What lies in a folder; nothing where there is none."""
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def quarantined(store: EngineStore) -> list[str]:
    """What the store has put aside."""
    return names(store.root / ".quarantine")


def raising(error: BaseException) -> Callable[..., Any]:
    """Stands for a call that ends in that error."""

    def raise_it(*_: object, **__: object) -> None:
        raise error

    return raise_it


def fail(number: int) -> Callable[..., Any]:
    """Stands for a call that the system refuses."""
    return raising(OSError(number, os.strerror(number)))


def replace_by(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Removes a file or a folder, and makes something else in its place."""

    def apply(path: Path) -> object:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return make(path)

    return apply


def move_and_link(path: Path) -> None:
    """Puts a link in the place of a file or a folder, which goes to a place above it."""
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def toy_request(
    backend: Backend, make: Callable[[], torch.nn.Module] = ToyNetwork, spec: EngineSpec | None = None, **more: Any
) -> BuildRequest:
    """A build of a toy on the CPU; `more` are further fields of the request."""
    return BuildRequest(
        spec or toy_spec(), more.pop("source", ToySource(make)), backend, more.pop("device", CPU), **more
    )
