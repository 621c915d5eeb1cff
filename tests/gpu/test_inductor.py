"""Inductor on a CUDA GPU: graphs that replay, and what happens where none can be captured."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.engine_builder.backends import cuda_graph
from i2v_tensorrt.engine_builder.backends.cuda_graph import CaptureError
from i2v_tensorrt.engine_builder.backends.inductor import runner as inductor_runner
from i2v_tensorrt.engine_builder.backends.inductor.runner import InductorRunner
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.parity import passes
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ..helpers.inductor_toys import Mixed, build, loaded
from ..helpers.toys import LIMITS, toy_spec

CUDA = torch.device("cuda", 0)
SIZES = {"batch": 2, "frames": 4, "latent_height": 8, "latent_width": 6}
CLIP = {"batch": 2, "frames": 4, "latent_height": 8, "latent_width": 16, "chunk": 4}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    spec = toy_spec(LIMITS, "fp16")
    return build(tmp_path_factory.mktemp("inductor"), CUDA, spec, lambda: Mixed().half())


@pytest.fixture
def runner(plan: Plan) -> Iterator[InductorRunner]:
    made, _ = loaded(plan, CUDA)
    yield made
    made.unload()


def inputs_of(runner: InductorRunner, seed: int = 0, sizes: dict[str, int] = SIZES) -> dict[str, torch.Tensor]:
    return {name: tensor.to(CUDA) for name, tensor in example_inputs(runner.spec, sizes, seed).items()}


@pytest.fixture(autouse=True)
def worthwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are captured whatever the CPU's share of a call's time: these networks are tiny, and others run too."""
    monkeypatch.setattr(cuda_graph, "LAUNCH_BOUND", 0.0)


@pytest.mark.usefixtures("graphs")
def test_a_replay_gives_what_the_direct_call_gives(runner: InductorRunner) -> None:
    inputs = inputs_of(runner)
    direct, replayed, again = (runner(inputs)["prediction"] for _ in range(3))
    assert len(runner._replays) == 1
    assert torch.equal(direct, replayed)
    assert torch.equal(direct, again)
    assert runner.warning is None


@pytest.mark.parametrize("name", ["sample", "strength"])
def test_each_changed_input_changes_a_replays_output(runner: InductorRunner, name: str) -> None:
    """One that changes at every step, and one that stays for a clip: another tensor, and the same changed in place."""
    inputs, others = inputs_of(runner), inputs_of(runner, 1)
    before = [runner(inputs)["prediction"] for _ in range(3)][-1]
    for changed in ({**inputs, name: others[name]}, {**inputs, name: inputs[name].add_(1)}):
        found = runner(changed)["prediction"]
        assert float((found - before).abs().max()) > 1e-3
        torch.testing.assert_close(found, runner._direct(changed)["prediction"], rtol=0, atol=0)


def test_a_tensor_that_takes_a_freed_ones_place_is_seen(runner: InductorRunner) -> None:
    inputs = inputs_of(runner)
    for seed in range(6):
        fresh = {**inputs, "strength": inputs_of(runner, seed)["strength"]}
        found = runner(fresh)["prediction"]
        torch.testing.assert_close(found, runner._direct(fresh)["prediction"], rtol=0, atol=0)
        del fresh


def test_inputs_made_in_inference_mode_are_always_copied(runner: InductorRunner) -> None:
    with torch.inference_mode():
        inputs = inputs_of(runner)
        for step in range(4):
            inputs["strength"].add_(step)
            found = runner(inputs)["prediction"]
            torch.testing.assert_close(found, runner._direct(inputs)["prediction"], rtol=0, atol=0)


def test_a_replays_output_is_the_callers_own(runner: InductorRunner) -> None:
    inputs = inputs_of(runner)
    results = [runner(inputs)["prediction"] for _ in range(3)]
    kept = results[-1].clone()
    runner({**inputs, "sample": -inputs["sample"]})
    assert torch.equal(results[-1], kept)


def test_weights_changed_in_place_change_a_replays_output(plan: Plan) -> None:
    runner, network = loaded(plan, CUDA)
    inputs = inputs_of(runner)
    for _ in range(3):
        runner(inputs)
    network.linear.weight.mul_(3)
    network.linear.bias.add_(1)
    torch.testing.assert_close(runner(inputs)["prediction"], network(**inputs), rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("graphs")
def test_each_size_has_its_own_graph_and_there_are_not_too_many(
    runner: InductorRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor_runner, "MAX_GRAPHS", 2)
    for frames in (1, 2, 3, 1, 2, 3, 1, 2, 3):
        inputs = inputs_of(runner, frames, {**SIZES, "frames": frames})
        found = runner(inputs)["prediction"]
        torch.testing.assert_close(found, runner._direct(inputs)["prediction"], rtol=0, atol=0)
    assert len(runner._replays) == 2


@pytest.mark.usefixtures("graphs")
def test_where_no_graph_can_be_captured_it_runs_directly_and_says_so(
    runner: InductorRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise CaptureError("CUDA error: operation not permitted when stream is capturing")

    monkeypatch.setattr(inductor_runner, "Replay", refuse)
    inputs = inputs_of(runner)
    first, *later = (runner(inputs)["prediction"] for _ in range(3))
    assert all(torch.equal(first, each) for each in later)
    assert runner.warning == (
        "core runs without a CUDA graph, which is slower: CUDA error: operation not permitted when stream is capturing."
    )


def allocated() -> int:
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated(CUDA)


def test_unloading_frees_what_loading_and_running_took(plan: Plan) -> None:
    def once() -> None:
        runner, _ = loaded(plan, CUDA)
        inputs = inputs_of(runner)
        for _ in range(3):
            runner(inputs)
        runner.unload()
        assert not runner.is_loaded
        assert runner._replays == {}

    once()  # libraries keep workspaces from their first use
    before = allocated()
    for _ in range(3):
        once()
    assert allocated() <= before


class Unbiased(Mixed):
    """A convolution over channels that lie last, without its bias."""

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        x = sample.permute(0, 2, 3, 4, 1).contiguous().flatten(0, 1).permute(0, 3, 1, 2)
        x = torch.nn.functional.conv2d(x, self.conv.weight, None, 1, 1).permute(0, 2, 3, 1)
        return torch.tanh(x).unflatten(0, sample.shape[::2][:2]).permute(0, 4, 1, 2, 3)


def test_convolutions_results_are_read_in_the_order_in_which_they_lie(tmp_path: Path) -> None:
    exact = toy_spec(ShapeProfile(toy_spec().profile.exact(SIZES).ranges), "fp16")
    found = build(tmp_path, CUDA, exact, lambda: Unbiased().half()).manifest.verdict
    assert found is not None
    passes(found, "fp16")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("component", ["core", "vae_decoder"])
def test_a_rewritten_component_passes_the_gate(
    model: VideoModel, component: str, precision: str, tmp_path: Path
) -> None:
    rewrites = model.known_rewrites[component]
    policy = EnginePolicy(backend="inductor", precision=precision, shapes="exact", rewrites=rewrites)
    engines = EngineSet(model, EngineStore(tmp_path), policy, CUDA)
    with BuildProcess() as process:
        manifest = engines.build(component, CLIP, process).plan.manifest
    assert set(manifest.spec.rewrites) == set(rewrites)
    assert manifest.verdict is not None
    passes(manifest.verdict, precision)
    own = {name: size for name, size in CLIP.items() if name in manifest.spec.network.limits.ranges}
    inputs = example_inputs(manifest.spec, own, seed=3)
    results = [next(iter(engines.run(component, inputs).values())) for _ in range(4)]
    assert all(torch.equal(results[0], each) for each in results[1:])
    assert engines.take_notes() == []
