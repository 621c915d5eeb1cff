"""TensorRT: real builds by TensorRT-RTX for GPUs that are not here, and what is said where they cannot be made.

Running a plan needs a GPU: see tests/gpu.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError
from i2v_tensorrt.common.shapes import ShapeProfile, span
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.base import BuildTarget
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend, _library_availability
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, RTX_ARCHS, choose_library
from i2v_tensorrt.engine_builder.build.build import BuildResult, build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.clip_sizes import clip_sizes

from ...helpers.counts import Evidence, counted
from ...helpers.toys import CPU, LIMITS, InProcess, names, toy_spec

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")

Build = Callable[..., BuildResult]
"""Builds a component in a precision for an architecture: at 64x64, or at a profile."""
COMPONENTS = ("image_encoder", "text_encoder", "vae_encoder", "vae_decoder", "core")
SQUARE, WIDE = (64, 64), (128, 64)
LIMIT_S = 5.0
STAGES = ("export", "parse", "build", "serialize")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    """Heads of 64 channels, which TensorRT has attention kernels for."""
    sizes = TinySizes(channels=(64, 128), head_dim=64, width=64)
    return open_model(write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny64", sizes))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EngineStore:
    return EngineStore(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def build(model: VideoModel, store: EngineStore) -> Iterator[Build]:
    def built(*what: Any) -> BuildResult:
        return build_engine(request(model, *what), store, process)

    with BuildProcess() as process:
        yield built


def exact(model: VideoModel, component: str, width: int = 64, height: int = 64) -> ShapeProfile:
    limits = model.components[component].spec.limits
    sizes = clip_sizes(model, width, height, 4)
    return limits.exact({name: size for name, size in sizes.items() if name in limits.ranges})


def presets(model: VideoModel, component: str, *sides: tuple[int, int]) -> ShapeProfile:
    return span([exact(model, component, *each) for each in sides], model.components[component].spec.limits)


def request(
    model: VideoModel,
    component: str,
    precision: str = "fp16",
    arch: str = "sm_89",
    profile: ShapeProfile | None = None,
) -> BuildRequest:
    spec = EngineSpec(model.components[component].spec, profile or exact(model, component), precision)
    return BuildRequest(spec, model.source(component, precision), TensorRTBackend(), CPU, arch)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("component", [*COMPONENTS[:-1], pytest.param(COMPONENTS[-1], marks=pytest.mark.slow)])
def test_every_network_builds_for_a_gpu_that_is_not_here(build: Build, component: str, precision: str) -> None:
    """All families', for other GPUs and with their weights outside: `tests/fidelity/test_engines.py`."""
    plan = build(component, precision, "sm_89").plan
    manifest = plan.manifest
    assert (set(manifest.files), manifest.target.arch, manifest.verdict) == ({PLAN}, "sm_89", None)
    assert int(manifest.details["activation_bytes"]) > 0
    assert int(manifest.details["peak_memory_bytes"]) > manifest.size_bytes > 100_000
    plan.verify()


@pytest.mark.parametrize("arch", ["sm_89", "sm_120"])
def test_a_plan_is_found_again_and_another_gpu_gets_another(build: Build, arch: str) -> None:
    """The two differ by more than their target says: the library aimed them."""
    first, again, other = (build("image_encoder", "fp16", each) for each in ("sm_86", "sm_86", arch))
    assert again.reused
    assert again.plan.manifest.key == first.plan.manifest.key != other.plan.manifest.key
    assert first.plan.read(PLAN) != other.plan.read(PLAN)


class Heavy(torch.nn.Module):
    """More weights than kernels: 3.6 MB in fp16."""

    def __init__(self) -> None:
        super().__init__()
        sides = ((4, 256), (256, 256), (256, 4))
        layers = [torch.nn.Conv3d(*each, 3, padding=1, dtype=torch.float16) for each in sides]
        self.layers = torch.nn.Sequential(*layers)

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return self.layers(sample) * strength.to(sample.dtype)[:, :, None, None, None]


def test_profiles_share_one_set_of_weights(tmp_path: Path) -> None:
    shapes = [LIMITS.exact({"batch": 2, "frames": 4, "latent_height": 8, "latent_width": w}) for w in (8, 16, 32)]
    sizes = []
    for count in (1, 2, 3):
        folder = tmp_path / str(count)
        folder.mkdir()
        spec = toy_spec(span(shapes[:count], LIMITS), "fp16")
        TensorRTBackend("sm_89").build(Heavy().eval(), spec, folder, lambda *_: None)
        sizes.append((folder / PLAN).stat().st_size)
    weights = sum(parameter.nbytes for parameter in Heavy().parameters())
    assert sizes[0] > weights
    assert all(0 < larger - smaller < weights / 2 for smaller, larger in zip(sizes, sizes[1:], strict=False))


@pytest.mark.parametrize("component", ["vae_encoder", "vae_decoder", pytest.param("core", marks=pytest.mark.slow)])
def test_presets_are_one_engine_that_is_found_again(
    model: VideoModel, store: EngineStore, build: Build, component: str
) -> None:
    profile = presets(model, component, SQUARE, WIDE)
    plan = build(component, "fp16", "sm_89", profile).plan
    assert EngineStore(store.root).find(plan.manifest.key) == plan
    assert plan.manifest.spec.profile.profiles == (exact(model, component), exact(model, component, *WIDE))
    assert build(component, "fp16", "sm_89", profile).reused


def test_the_builder_is_given_a_profile_for_each_preset(
    model: VideoModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Read off the library's own configuration, with its own numbers."""
    found: list[Any] = []
    real = trt.IBuilderConfig.add_optimization_profile

    def seen(config: Any, profile: Any) -> int:
        found.append([tuple(shape) for shape in profile.get_shape("latents")])
        return real(config, profile)

    monkeypatch.setattr(trt.IBuilderConfig, "add_optimization_profile", seen)
    network = model.components["vae_decoder"].spec
    spec = EngineSpec(network, presets(model, "vae_decoder", SQUARE, WIDE), "fp16")
    TensorRTBackend("sm_89").build(model.components["vae_decoder"].load("fp16"), spec, tmp_path, lambda *_: None)
    assert found == [[(4, 4, 8, 8)] * 3, [(4, 4, 8, 16)] * 3]


@pytest.mark.parametrize("arch", ["sm_90", "sm_99", "gfx1100", ""])
def test_other_architectures_are_refused_in_a_sentence(arch: str) -> None:
    with pytest.raises(EngineError, match="sm_75, sm_80"):
        TensorRTBackend().for_target(BuildTarget(CPU, arch))


def test_every_architecture_is_one_that_the_library_knows_and_that_no_other_backend_builds_for() -> None:
    for arch in RTX_ARCHS:
        assert hasattr(trt.ComputeCapability, arch.replace("_", "").upper())
        with pytest.raises(EngineError, match="this machine only"):
            OnnxRuntimeBackend().for_target(BuildTarget(CPU, arch))


def test_a_machine_without_a_gpu_is_told_so() -> None:
    found = TensorRTBackend().availability(CPU)
    assert not found.ok
    assert "found none" in found.sentence
    with pytest.raises(BackendUnavailableError, match="NVIDIA GPU"):
        TensorRTBackend().target(CPU)


@pytest.mark.parametrize(
    ("installed", "arch", "expected"),
    [
        ({"tensorrt_rtx", "tensorrt"}, "sm_89", "tensorrt_rtx"),
        ({"tensorrt_rtx", "tensorrt"}, "sm_90", "tensorrt"),
        ({"tensorrt"}, "sm_89", "tensorrt"),
        ({"tensorrt_rtx"}, "sm_90", None),
        (set(), "sm_89", None),
    ],
)
def test_the_library_follows_the_gpu_and_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: set[str], arch: str, expected: str | None
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in installed else None)
    assert choose_library(arch) == expected


@pytest.mark.parametrize(
    ("cuda", "arch", "line"),
    [
        ("13.0", "sm_89", "pip install tensorrt-rtx"),
        ("12.8", "sm_89", "pip install tensorrt-rtx-cu12"),
        ("13.0", "sm_90", "pip install tensorrt"),
        ("12.6", "sm_90", "pip install tensorrt-cu12"),
        (None, "sm_120", "pip install tensorrt-rtx"),
    ],
)
def test_a_missing_library_names_the_line_to_install_for_this_cuda(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, arch: str, line: str
) -> None:
    """The plain packages bring CUDA 13's libraries, which a driver for CUDA 12 does not run."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _library_availability(arch).install == line
    with pytest.raises(BackendUnavailableError, match=line):
        TensorRTBackend(arch).require_library()


# Cancelling: whatever the stage, the child is gone within five seconds.


@pytest.fixture
def fresh(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


class CancelledError(Exception):
    """What a host raises when its user interrupts."""


class Canceller:
    """A report that raises a while after the stage was first told, or when it has passed; knows when it did."""

    def __init__(self, stage: str, delay_s: float) -> None:
        self._stage, self._delay_s = stage, delay_s
        self._due_s: float | None = None
        self.raised_s = 0.0

    def __call__(self, stage: str, done: float) -> None:
        now, is_there = time.monotonic(), stage.split(" (")[0] == self._stage
        if is_there and self._due_s is None:
            self._due_s = now + self._delay_s
        if self._due_s is not None and (now >= self._due_s or not is_there):
            self.raised_s = now
            raise CancelledError(stage)


def cancelled_s(model: VideoModel, component: str, store: EngineStore, canceller: Canceller) -> float:
    """The seconds from the cancellation until the child has ended and nothing of its build is left."""
    with BuildProcess() as process:
        process._child = child = process._living()
        with pytest.raises(CancelledError):
            build_engine(request(model, component), store, process, report=canceller)
        waited_s = time.monotonic() - canceller.raised_s
        assert not child.is_alive
    assert list(store.plans()) == []
    assert names(store.root / ".staging") == []
    return waited_s


@pytest.mark.parametrize("stage", STAGES)
@counted(1, 20, slow=True)
def test_a_build_is_cancelled_within_five_seconds(
    model: VideoModel, fresh: EngineStore, stage: str, count: int, evidence: Evidence
) -> None:
    waits_s = [cancelled_s(model, "image_encoder", fresh, Canceller(stage, 0.0)) for _ in range(count)]
    assert max(waits_s) <= LIMIT_S
    evidence(f"builds cancelled in {stage}", count, f"all ended, the slowest after {max(waits_s):.2f} s")


@counted(1, 5, slow=True)
def test_a_build_is_cancelled_while_tensorrt_says_nothing(
    model: VideoModel, fresh: EngineStore, count: int, evidence: Evidence
) -> None:
    """The denoiser is built for seconds, most of them without a step that TensorRT tells of."""
    draw = random.Random(count)
    waits_s = [cancelled_s(model, "core", fresh, Canceller("build", draw.uniform(0, 2))) for _ in range(count)]
    assert max(waits_s) <= LIMIT_S
    evidence("builds cancelled while TensorRT is silent", count, f"all ended, the slowest after {max(waits_s):.2f} s")


@pytest.mark.parametrize("stage", STAGES)
def test_what_cancels_is_what_comes_out_where_no_process_lies_between(
    model: VideoModel, fresh: EngineStore, stage: str
) -> None:
    with pytest.raises(CancelledError, match=stage):
        build_engine(request(model, "image_encoder"), fresh, InProcess(), report=Canceller(stage, 0.0))
    assert names(fresh.root / ".staging") == []
