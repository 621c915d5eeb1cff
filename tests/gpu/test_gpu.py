"""Every backend on a real GPU: build, gate, run, compare, unload, run out of memory, be cancelled, and be timed."""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace

import pytest
import torch

from i2v_tensorrt.engine_builder.backends.base import INSIDE, OUTSIDE, Runner
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.parity import measure, passes
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from .conftest import Figures, Inputs

DENOISER = "core"
SLACK_BYTES = 64 << 20
"""What other programs and the driver may take or give meanwhile."""
LOADS = 10
RUNS = 20
CANCEL_S = 5.0
Tensors = Mapping[str, torch.Tensor]
each_component = pytest.mark.parametrize("component", I2VGenXL.engine_components)


class CancelledError(Exception):
    """What a host raises when its user interrupts."""


def free_bytes() -> int:
    """The GPU's free memory, once PyTorch has given back what it only keeps for later."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


@contextmanager
def full_gpu() -> Iterator[None]:
    """Takes all memory that is free, down to pieces of 2 MiB."""
    taken, size = [], 1 << 40
    while size >= 2 << 20:
        try:
            taken.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
        except torch.cuda.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        taken.clear()
        free_bytes()


def needs_builds(engines: EngineSet) -> None:
    if not BACKENDS[engines.policy.backend].builds:
        pytest.skip(f"The backend {engines.policy.backend} has nothing to build.")


def runner_of(engines: EngineSet, component: str, sizes: dict[str, int]) -> Runner:
    """The backend's own runner: built if no test has done so yet, and never eager PyTorch in its place."""
    if BACKENDS[engines.policy.backend].builds and not engines.catalog.stored(component):
        with BuildProcess() as process:
            engines.build(component, sizes, process)
    runner = engines.runner(component, sizes)
    assert runner.backend == engines.policy.backend
    return runner


def flat(outputs: Tensors) -> torch.Tensor:
    return torch.cat([outputs[name].double().flatten().cpu() for name in sorted(outputs)])


def median_ms(runner: Runner, inputs: Tensors) -> float:
    """The median of RUNS calls, after as many as graphs and caches need to be ready."""
    times = []
    for number in range(RUNS + 5):
        torch.cuda.synchronize()
        started = time.perf_counter()
        runner(inputs)
        torch.cuda.synchronize()
        times += [time.perf_counter() - started] if number >= 5 else []
    return round(1000 * statistics.median(times), 3)


@each_component
def test_an_engine_is_built_and_passes_the_gate(
    engines: EngineSet, sizes: dict[str, int], component: str, figures: Figures
) -> None:
    needs_builds(engines)
    with BuildProcess() as process:
        manifest = engines.build(component, sizes, process, force=True).plan.manifest
    figures(build_s=manifest.build_s, size_bytes=manifest.size_bytes, version=manifest.target.backend_version)
    assert manifest.verdict is not None
    figures(**{name: value for name, value in asdict(manifest.verdict).items() if name != "shapes"})
    passes(manifest.verdict, engines.precision)
    assert engines.catalog.stored(component) != []


@each_component
def test_an_engine_gives_what_eager_pytorch_gives(
    engines: EngineSet,
    reference: EngineSet,
    sizes: dict[str, int],
    inputs: Inputs,
    component: str,
    figures: Figures,
) -> None:
    """Against fp32, on inputs that the parity check has not seen; the results stay as they are while it runs on."""
    drawn = [inputs(component, seed) for seed in (100, 101)]
    runner = runner_of(engines, component, sizes)
    found = [runner(each) for each in drawn]
    expected = [reference.run(component, each) for each in drawn]
    verdicts = [measure(flat(right), flat(mine), sizes) for right, mine in zip(expected, found, strict=True)]
    figures(cosine=min(each.cosine for each in verdicts), snr_db=min(each.snr_db for each in verdicts))
    for verdict in verdicts:
        passes(verdict, engines.precision)


def test_unloading_gives_all_memory_back(
    engines: EngineSet, sizes: dict[str, int], inputs: Inputs, figures: Figures
) -> None:
    runner, drawn = runner_of(engines, DENOISER, sizes), inputs(DENOISER, 0)
    runner(drawn)
    runner.unload()
    before, held = free_bytes(), 0
    for _ in range(LOADS):
        runner.load()
        runner(drawn)
        held = before - free_bytes()
        runner.unload()
        assert not runner.is_loaded
    lost = before - free_bytes()
    figures(loads=LOADS, held_bytes=held, said_bytes=runner.memory_bytes, lost_bytes=lost)
    assert lost <= SLACK_BYTES


@pytest.mark.skipif(sys.platform == "win32", reason="Windows lends the host's memory where the GPU's runs out")
def test_memory_that_is_not_there_is_pytorchs_own_error(
    engines: EngineSet, sizes: dict[str, int], inputs: Inputs
) -> None:
    """ComfyUI knows that error, frees what it can and says so; afterwards the engine runs again."""
    runner, drawn = runner_of(engines, DENOISER, sizes), inputs(DENOISER, 0)
    expected = flat(runner(drawn))
    runner.unload()
    free_bytes()
    with full_gpu(), pytest.raises(torch.cuda.OutOfMemoryError):
        runner.load()
        runner(drawn)
    runner.unload()
    runner.load()
    assert measure(expected, flat(runner(drawn)), sizes).cosine > 0.9999


@pytest.mark.parametrize("stages", [2, 4])
def test_a_cancelled_build_ends_and_gives_the_gpu_back(
    engines: EngineSet, sizes: dict[str, int], stages: int, figures: Figures
) -> None:
    needs_builds(engines)
    engines.unload()
    before, heard, raised = free_bytes(), list[str](), 0.0

    def cancel(stage: str, done: float) -> None:
        nonlocal raised
        heard.extend([stage] if stage not in heard else [])
        if len(heard) == stages:
            raised = time.monotonic()
            raise CancelledError

    with BuildProcess() as process:
        with pytest.raises(CancelledError):
            engines.build(DENOISER, sizes, process, force=True, report=cancel)
        waited_s = time.monotonic() - raised
    figures(cancelled_in=heard[-1], waited_s=round(waited_s, 2))
    assert waited_s <= CANCEL_S
    assert before - free_bytes() <= SLACK_BYTES


@each_component
def test_how_long_a_call_takes(
    engines: EngineSet, sizes: dict[str, int], inputs: Inputs, component: str, figures: Figures
) -> None:
    """Beside eager PyTorch in the same precision."""
    drawn = inputs(component, 0)
    runner = runner_of(engines, component, sizes)
    policy = replace(engines.policy, backend="eager")
    eager = EngineSet(engines.model, engines.store, policy, engines.device).runner(component, sizes)
    mine_ms, eager_ms = median_ms(runner, drawn), median_ms(eager, drawn)
    figures(median_ms=mine_ms, eager_median_ms=eager_ms, times_faster=round(eager_ms / mine_ms, 2))
    assert bool(torch.isfinite(flat(runner(drawn))).all())


@each_component
def test_weights_outside_an_engine_beside_inside(
    engines: EngineSet, sizes: dict[str, int], inputs: Inputs, component: str, figures: Figures
) -> None:
    """Where a backend has both: the same result, and the report says which is faster by how much."""
    if set(BACKENDS[engines.policy.backend].weights) != {OUTSIDE, INSIDE}:
        pytest.skip(f"The backend {engines.policy.backend} has one place for weights.")
    drawn, times, found = inputs(component, 0), dict[str, float](), dict[str, torch.Tensor]()
    for place in (OUTSIDE, INSIDE):
        policy = replace(engines.policy, weights=place)
        runner = runner_of(EngineSet(engines.model, engines.store, policy, engines.device), component, sizes)
        assert runner.spec.holds_weights == (place == INSIDE)
        times[place], found[place] = median_ms(runner, drawn), flat(runner(drawn))
        runner.unload()
    outside_ms, inside_ms = times[OUTSIDE], times[INSIDE]
    figures(outside_ms=outside_ms, inside_ms=inside_ms, outside_times_inside=round(outside_ms / inside_ms, 3))
    passes(measure(found[INSIDE], found[OUTSIDE], sizes), engines.precision)
