"""TensorRT: real builds by TensorRT-RTX for GPUs that are not here, and every call of the runner.

Running a plan needs a GPU: see the tests marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError, InputError
from i2v_tensorrt.common.shapes import ShapeProfile, span
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.base import BuildTarget
from i2v_tensorrt.engine_builder.backends.cuda_graph import CaptureError
from i2v_tensorrt.engine_builder.backends.tensorrt import runner as tensorrt_runner
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend, _library_availability
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, RTX, RTX_ARCHS, choose_library, load_library
from i2v_tensorrt.engine_builder.build.build import BuildResult, build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.clip_sizes import clip_sizes

from ...helpers.toys import LIMITS, toy_spec

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")

CPU = torch.device("cpu")
COMPONENTS = ("text_encoder", "image_encoder", "vae_encoder", "vae_decoder")
SLOW_FOR_OTHERS = ("text_encoder", "vae_encoder", "vae_decoder", "core")
SLOW_DENOISER = pytest.param("core", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    """Heads of 64 channels, which TensorRT has attention kernels for."""
    sizes = TinySizes(channels=(64, 128), head_dim=64, width=64)
    return open_model(write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny64", sizes))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EngineStore:
    return EngineStore(tmp_path_factory.mktemp("engines"))


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


def exact(model: VideoModel, component: str, width: int = 64, height: int = 64) -> ShapeProfile:
    limits = model.components[component].spec.limits
    sizes = clip_sizes(model, width, height, 4)
    return limits.exact({name: size for name, size in sizes.items() if name in limits.ranges})


def presets(model: VideoModel, component: str, *sides: tuple[int, int]) -> ShapeProfile:
    return span([exact(model, component, *each) for each in sides], model.components[component].spec.limits)


def built(
    model: VideoModel,
    store: EngineStore,
    process: BuildProcess,
    component: str,
    precision: str,
    arch: str,
    profile: ShapeProfile | None = None,
) -> BuildResult:
    network = model.components[component].spec
    source, shapes = model.source(component, precision), profile or exact(model, component)
    request = BuildRequest(EngineSpec(network, shapes, precision), source, TensorRTBackend(), CPU, arch)
    return build_engine(request, store, process)


@pytest.mark.parametrize("arch", ["sm_86", "sm_120"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(
    "component", ["image_encoder", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW_FOR_OTHERS)]
)
def test_builds_for_a_gpu_that_is_not_here(
    model: VideoModel, store: EngineStore, process: BuildProcess, component: str, precision: str, arch: str
) -> None:
    manifest = built(model, store, process, component, precision, arch).plan.manifest
    assert set(manifest.files) == {PLAN}
    assert manifest.target.arch == arch
    assert manifest.verdict is None
    assert int(manifest.details["activation_bytes"]) > 0
    assert int(manifest.details["peak_memory_bytes"]) > manifest.size_bytes


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("component", [*COMPONENTS, SLOW_DENOISER])
def test_every_network_builds(
    model: VideoModel, store: EngineStore, process: BuildProcess, component: str, precision: str
) -> None:
    plan = built(model, store, process, component, precision, "sm_89").plan
    assert plan.manifest.size_bytes > 100_000
    plan.verify()


def test_a_plan_is_found_again_and_another_gpu_gets_another(
    model: VideoModel, store: EngineStore, process: BuildProcess
) -> None:
    first = built(model, store, process, "image_encoder", "fp16", "sm_86")
    again = built(model, store, process, "image_encoder", "fp16", "sm_86")
    other = built(model, store, process, "image_encoder", "fp16", "sm_89")
    assert again.reused
    assert again.plan.manifest.key == first.plan.manifest.key != other.plan.manifest.key


def test_the_plan_is_for_the_gpu_that_was_asked_for(
    model: VideoModel, store: EngineStore, process: BuildProcess
) -> None:
    """Two plans of one network differ by more than their target says: the library aimed them."""
    plans = [built(model, store, process, "image_encoder", "fp16", arch).plan for arch in ("sm_86", "sm_120")]
    assert plans[0].read(PLAN) != plans[1].read(PLAN)


SQUARE, WIDE = (64, 64), (128, 64)


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
    assert 0 < sizes[1] - sizes[0] < weights / 2
    assert 0 < sizes[2] - sizes[1] < weights / 2


@pytest.mark.parametrize("component", ["vae_encoder", "vae_decoder", SLOW_DENOISER])
def test_presets_are_one_engine_that_is_found_again(
    model: VideoModel, store: EngineStore, process: BuildProcess, component: str
) -> None:
    profile = presets(model, component, SQUARE, WIDE)
    plan = built(model, store, process, component, "fp16", "sm_89", profile).plan
    assert EngineStore(store.root).find(plan.manifest.key) == plan
    assert plan.manifest.spec.profile.profiles == (exact(model, component), exact(model, component, *WIDE))
    assert built(model, store, process, component, "fp16", "sm_89", profile).reused


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
        TensorRTBackend().aimed_at(BuildTarget(CPU, arch))


def test_other_backends_build_for_this_machine_only() -> None:
    from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend

    with pytest.raises(EngineError, match="this machine only"):
        OnnxRuntimeBackend().aimed_at(BuildTarget(CPU, "sm_89"))


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


def test_a_missing_library_names_the_line_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError, match="pip install tensorrt-rtx"):
        TensorRTBackend().aimed_at(BuildTarget(CPU, "sm_89")).require_library()


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
def test_the_line_to_install_is_for_this_cuda(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, arch: str, line: str
) -> None:
    """The plain packages bring CUDA 13's libraries, which a driver for CUDA 12 does not run."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert _library_availability(arch).install == line


def test_every_architecture_is_one_that_the_library_knows() -> None:
    for arch in RTX_ARCHS:
        assert hasattr(trt.ComputeCapability, arch.replace("_", "").upper())


class NoStream:
    """Stands in for a CUDA stream where there is none."""

    handle = 7
    can_capture = True
    replay = Mock()

    def __init__(self, device: torch.device) -> None:
        self.waits = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        call()
        return self.replay

    def hand_over(self, tensor: torch.Tensor) -> None:
        pass

    def synchronize(self) -> None:
        self.waits += 1


SCRATCH_BYTES = 1000


@pytest.fixture
def rig(
    monkeypatch: pytest.MonkeyPatch, model: VideoModel, store: EngineStore, process: BuildProcess
) -> Iterator[SimpleNamespace]:
    """A runner over a real plan, with the library's real classes specified and none of them run."""
    plan = built(model, store, process, "image_encoder", "fp16", "sm_89").plan
    context = create_autospec(trt.IExecutionContext, instance=True)
    config = create_autospec(trt.IRuntimeConfig, instance=True)
    kernels = create_autospec(trt.IRuntimeCache, instance=True)
    kernels.serialize.return_value = memoryview(b"kernels of the first shape")
    config.create_runtime_cache.return_value = kernels
    engine = create_autospec(trt.ICudaEngine, instance=True)
    runtime = create_autospec(trt.Runtime, instance=True)
    runtime.deserialize_cuda_engine.return_value = engine
    engine.create_runtime_config.return_value = config
    engine.create_execution_context.return_value = context
    engine.num_io_tensors = 2
    engine.get_tensor_name.side_effect = ["pixel_values", "image_embeds"].__getitem__
    context.update_device_memory_size_for_shapes.return_value = SCRATCH_BYTES
    engine.streamable_weights_size = 0
    monkeypatch.setattr(trt, "Runtime", lambda logger: runtime)
    monkeypatch.setattr(tensorrt_runner, "OwnStream", NoStream)
    runner = tensorrt_runner.TensorRTRunner(plan, plan.manifest.spec, CPU, load_library(RTX))
    yield SimpleNamespace(
        runner=runner, plan=plan, context=context, config=config, engine=engine, runtime=runtime, kernels=kernels
    )
    (plan.folder / tensorrt_runner.KERNELS).unlink(missing_ok=True)


def inputs() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.rand(1, 3, 32, 32)}


def test_loading_hands_over_the_bytes_that_were_checked(rig: SimpleNamespace) -> None:
    rig.runner.load()
    rig.runtime.deserialize_cuda_engine.assert_called_once_with(rig.plan.read(PLAN))
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    assert rig.config.dynamic_shapes_kernel_specialization_strategy == strategy.EAGER
    assert rig.config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    rig.config.set_execution_context_allocation_strategy.assert_called_once_with(strategy)
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes


def test_scratch_memory_is_what_the_shapes_at_hand_need(rig: SimpleNamespace) -> None:
    """Asked for once the shapes are known, given before the engine runs, and kept where it is for the next step."""
    rig.runner.load()
    rig.runner(inputs())
    rig.runner(inputs())
    told = ("set_input_shape", "update_device_memory_size_for_shapes", "set_device_memory", "execute_async_v3")
    assert [name for name, _, _ in rig.context.mock_calls if name in told] == [*told, "execute_async_v3"]
    (address, size), _ = rig.context.set_device_memory.call_args
    assert size == SCRATCH_BYTES and address != 0
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes + SCRATCH_BYTES
    rig.runner.unload()
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes


def test_a_call_binds_every_tensor_once_and_keeps_its_addresses(rig: SimpleNamespace) -> None:
    rig.runner.load()
    found = rig.runner(inputs())
    rig.runner(inputs())
    assert found["image_embeds"].shape == (1, 64)
    assert found["image_embeds"].dtype == torch.float16
    rig.context.set_input_shape.assert_called_once_with("pixel_values", (1, 3, 32, 32))
    assert {call.args[0] for call in rig.context.set_tensor_address.call_args_list} == {"pixel_values", "image_embeds"}
    assert rig.context.set_tensor_address.call_count == 2
    assert [call.args for call in rig.context.execute_async_v3.call_args_list] == [(7,), (7,)]


def test_results_do_not_change_when_the_engine_runs_again(rig: SimpleNamespace) -> None:
    rig.runner.load()
    first = rig.runner(inputs())["image_embeds"]
    second = rig.runner(inputs())["image_embeds"]
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.parametrize(
    ("fail", "words"),
    [
        (lambda rig: rig.runtime.deserialize_cuda_engine.configure_mock(return_value=None), "load the plan"),
        (lambda rig: rig.engine.create_runtime_config.configure_mock(return_value=None), "execution context"),
        (lambda rig: rig.engine.create_execution_context.configure_mock(return_value=None), "execution context"),
        (lambda rig: rig.context.set_input_shape.configure_mock(return_value=False), "take pixel_values as"),
        (lambda rig: rig.context.set_tensor_address.configure_mock(return_value=False), "take the address"),
        (lambda rig: rig.context.execute_async_v3.configure_mock(return_value=False), "run"),
    ],
)
def test_every_failed_call_is_told(rig: SimpleNamespace, fail: Any, words: str) -> None:
    fail(rig)
    with pytest.raises(EngineError, match=words):
        rig.runner.load()
        rig.runner(inputs())


def test_a_failure_from_memory_is_pytorchs_own_error(rig: SimpleNamespace) -> None:
    rig.runner.load()
    rig.runner._logger.last_error = "Cuda Runtime (out of memory)"
    rig.context.execute_async_v3.return_value = False
    with pytest.raises(torch.cuda.OutOfMemoryError):
        rig.runner(inputs())


def test_unloading_lets_everything_go_and_loads_again(rig: SimpleNamespace) -> None:
    rig.runner.load()
    rig.runner.unload()
    assert not rig.runner.is_loaded
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes
    with pytest.raises(EngineError, match="not loaded"):
        rig.runner(inputs())
    rig.runner.load()
    assert rig.runner(inputs())["image_embeds"].shape == (1, 64)


def test_a_damaged_plan_never_reaches_the_runtime(rig: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / PLAN).write_bytes(rig.plan.read(PLAN)[:-1] + b"x")
    rig.runner._plan = Plan(tmp_path, rig.plan.manifest)
    with pytest.raises(EngineError, match="damaged"):
        rig.runner.load()
    rig.runtime.deserialize_cuda_engine.assert_not_called()


def test_shapes_that_were_refused_are_set_again_by_the_next_call(rig: SimpleNamespace) -> None:
    rig.runner.load()
    rig.context.set_input_shape.return_value = False
    with pytest.raises(EngineError, match="take pixel_values"):
        rig.runner(inputs())
    rig.context.set_input_shape.return_value = True
    rig.runner(inputs())
    assert rig.context.set_input_shape.call_count == 2
    assert rig.context.execute_async_v3.call_count == 1


@pytest.fixture
def preset_rig(rig: SimpleNamespace, model: VideoModel, store: EngineStore, process: BuildProcess) -> SimpleNamespace:
    """The same over a plan with two profiles, of 4x4 and 4x8 latents."""
    profile = presets(model, "vae_encoder", SQUARE, WIDE)
    plan = built(model, store, process, "vae_encoder", "fp16", "sm_89", profile).plan
    names = [tensor.name for tensor in (*plan.manifest.spec.network.inputs, *plan.manifest.spec.network.outputs)]
    rig.engine.num_io_tensors = len(names)
    rig.engine.get_tensor_name.side_effect = names.__getitem__
    rig.runner = tensorrt_runner.TensorRTRunner(plan, plan.manifest.spec, CPU, load_library(RTX))
    rig.runner.load()
    return rig


def picture(width: int, height: int) -> dict[str, torch.Tensor]:
    return {"image": torch.rand(1, 3, height, width)}


def test_the_sizes_choose_the_profile(preset_rig: SimpleNamespace) -> None:
    """The context begins at the first; what was set before a switch is set again after it."""
    context = preset_rig.context
    for sides in (SQUARE, WIDE, WIDE, SQUARE):
        preset_rig.runner(picture(*sides))
    told = ("set_optimization_profile_async", "set_input_shape", "execute_async_v3")
    assert [(name, *args) for name, args, _ in context.mock_calls if name in told] == [
        ("set_input_shape", "image", (1, 3, 64, 64)),
        ("execute_async_v3", 7),
        ("set_optimization_profile_async", 1, 7),
        ("set_input_shape", "image", (1, 3, 64, 128)),
        ("execute_async_v3", 7),
        ("execute_async_v3", 7),
        ("set_optimization_profile_async", 0, 7),
        ("set_input_shape", "image", (1, 3, 64, 64)),
        ("execute_async_v3", 7),
    ]


def test_a_context_that_is_made_again_begins_at_the_first_profile(preset_rig: SimpleNamespace) -> None:
    preset_rig.runner(picture(*WIDE))
    preset_rig.runner.unload()
    preset_rig.runner.load()
    preset_rig.context.reset_mock()
    preset_rig.runner(picture(*SQUARE))
    preset_rig.context.set_optimization_profile_async.assert_not_called()


def test_a_profile_that_cannot_be_had_is_told_and_asked_for_again(preset_rig: SimpleNamespace) -> None:
    preset_rig.context.set_optimization_profile_async.return_value = False
    for _ in range(2):
        with pytest.raises(EngineError, match="switch to its profile 1"):
            preset_rig.runner(picture(*WIDE))
    assert preset_rig.context.set_optimization_profile_async.call_count == 2


def test_a_size_that_is_no_preset_is_told_from_the_nearest(preset_rig: SimpleNamespace) -> None:
    with pytest.raises(InputError, match="latent_width is 13, 3 below the smallest supported 16"):
        preset_rig.runner(picture(104, 64))


@pytest.fixture
def full_rig(rig: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The same by the full library's ways, which captures no CUDA graphs by itself."""
    rig.replay = Mock()
    monkeypatch.setattr(NoStream, "replay", rig.replay)
    library = replace(load_library(RTX), is_rtx=False)
    plan = rig.runner._plan
    rig.runner = tensorrt_runner.TensorRTRunner(plan, plan.manifest.spec, CPU, library)
    rig.runner.load()
    return rig


def runs(rig: SimpleNamespace) -> tuple[int, int]:
    """How often the engine's work was given to the stream, or to a graph, and how often a graph was replayed."""
    return rig.context.execute_async_v3.call_count, rig.replay.call_count


def test_the_full_librarys_calls_become_a_graph_at_the_second(full_rig: SimpleNamespace) -> None:
    told = []
    for _ in range(4):
        full_rig.runner(inputs())
        told.append(runs(full_rig))
    assert told == [(1, 0), (2, 1), (2, 2), (2, 3)]
    assert full_rig.runner.warning is None


def test_a_graph_is_of_one_shape_and_goes_with_the_engine(
    preset_rig: SimpleNamespace, full_rig: SimpleNamespace
) -> None:
    """Other shapes and another load have other addresses, which the old graph would write to."""
    for sides in (SQUARE, SQUARE, WIDE, WIDE):
        full_rig.runner(picture(*sides))
    assert runs(full_rig) == (4, 2)
    full_rig.runner.unload()
    full_rig.runner.load()
    full_rig.runner(picture(*WIDE))
    assert runs(full_rig) == (5, 2)


def test_a_graph_that_cannot_be_captured_is_told_and_not_needed(
    full_rig: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = Mock(side_effect=CaptureError("CUDA error: operation not permitted when stream is capturing"))
    monkeypatch.setattr(NoStream, "capture", refused)
    for _ in range(3):
        full_rig.runner(inputs())
    assert runs(full_rig) == (3, 0)
    assert refused.call_count == 1
    assert full_rig.runner.warning == (
        "image_encoder runs without a CUDA graph, which is slower: "
        "CUDA error: operation not permitted when stream is capturing."
    )


def test_rtx_captures_its_graphs_by_itself(rig: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = Mock()
    monkeypatch.setattr(NoStream, "capture", captured)
    rig.runner.load()
    for _ in range(3):
        rig.runner(inputs())
    captured.assert_not_called()


def another_runner(rig: SimpleNamespace) -> tensorrt_runner.TensorRTRunner:
    """As another process would make it."""
    return tensorrt_runner.TensorRTRunner(rig.plan, rig.plan.manifest.spec, CPU, load_library(RTX))


def test_kernels_compiled_at_the_first_run_are_there_for_the_next_process(rig: SimpleNamespace) -> None:
    rig.runner.load()
    rig.kernels.deserialize.assert_not_called()
    rig.config.set_runtime_cache.assert_called_once_with(rig.kernels)
    rig.runner(inputs())
    rig.runner(inputs())
    rig.kernels.serialize.assert_called_once_with()
    another_runner(rig).load()
    rig.kernels.deserialize.assert_called_once_with(b"kernels of the first shape")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: b""]
)
def test_kernels_that_were_changed_are_not_taken(rig: SimpleNamespace, damage: Any) -> None:
    rig.runner.load()
    rig.runner(inputs())
    kept = rig.plan.folder / tensorrt_runner.KERNELS
    kept.write_bytes(damage(kept.read_bytes()))
    runner = another_runner(rig)
    runner.load()
    rig.kernels.deserialize.assert_not_called()
    runner(inputs())
    another_runner(rig).load()
    rig.kernels.deserialize.assert_called_once_with(b"kernels of the first shape")


@pytest.mark.parametrize(
    "fail",
    [
        lambda rig: rig.kernels.deserialize.configure_mock(return_value=False),
        lambda rig: rig.config.set_runtime_cache.configure_mock(return_value=False),
        lambda rig: rig.kernels.serialize.configure_mock(return_value=None),
        lambda rig: rig.kernels.serialize.configure_mock(return_value=memoryview(b"")),
        lambda rig: rig.config.create_runtime_cache.configure_mock(return_value=None),
    ],
)
def test_an_engine_runs_without_kept_kernels(rig: SimpleNamespace, fail: Any) -> None:
    rig.runner.load()
    rig.runner(inputs())
    fail(rig)
    runner = another_runner(rig)
    runner.load()
    assert runner(inputs())["image_embeds"].shape == (1, 64)
