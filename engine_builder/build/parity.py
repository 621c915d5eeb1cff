"""The gate: an engine is compared with eager PyTorch before anyone may use it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

from ...common.device import free_cached
from ...common.errors import EngineError
from ...common.spec import EngineSpec
from ..backends.base import Runner
from ..graph.onnx_export import example_inputs
from ..graph.recorded_calls import Call
from ..store.manifest import ParityReport

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Threshold:
    """The least cosine and signal-to-noise ratio (dB) that an engine must reach."""

    cosine: float
    snr_db: float


BLOCK = 1 << 24
"""Numbers compared at once, which bounds the comparison's host memory."""
MAX_SNR_DB = 200.0
"""Ratio reported for results without any noise, in place of infinity."""

THRESHOLDS = {
    # A full-size decoder's own rounding leaves 85 dB; a layer that is off by 1e-2 leaves 42 dB at the most.
    "fp32": Threshold(0.999999, 70.0),
    "fp16": Threshold(0.999, 30.0),
    "bf16": Threshold(0.999, 24.0),
    "int8": Threshold(0.997, 20.0),
    "fp8": Threshold(0.997, 20.0),
}


TIMESTEPS = 5
"""Number of places in the schedule at which a GPU's engine is compared."""


def timesteps_of(spec: EngineSpec, device: torch.device) -> int:
    """Number of comparisons at each shape: one on a CPU, where a call takes as long as a step of a clip."""
    has_timestep = any(tensor.is_timestep for tensor in spec.network.inputs)
    return TIMESTEPS if has_timestep and device.type == "cuda" else 1


def check_recorded_parity(candidate: Runner, calls: Sequence[Call]) -> ParityReport:
    """Repeats calls of real clips, of which random inputs would be no similarity; keeps the worst."""
    with _loaded(candidate):
        found = [_compare(candidate, call) for call in calls]
    return replace(worst(found), shapes=found[0].shapes, timesteps=len(calls))


def answered(reference: Runner, inputs: Iterable[Mapping[str, torch.Tensor]]) -> list[Call]:
    """The reference's calls with these inputs, its outputs in host memory."""
    with _loaded(reference):
        return [Call(each, _answer(reference, each)) for each in inputs]


def check_parity(reference: Runner, candidate: Runner, spec: EngineSpec, timesteps: int = 1) -> ParityReport:
    """Runs both on the same random inputs at the profile's corners, over the schedule at each; keeps the worst.

    One after the other: a GPU that has just the room for one is enough.
    """
    shapes = tuple(spec.profile.corners)
    parts = [(number / timesteps, (number + 1) / timesteps) for number in range(timesteps)]
    inputs = [(sizes, seed, part) for seed, (sizes, part) in enumerate(product(shapes, parts))]
    with _loaded(reference):
        answers = [_answer(reference, example_inputs(spec, *each)) for each in inputs]
    with _loaded(candidate):
        found = [
            _compare(candidate, Call(example_inputs(spec, *each), answer))
            for each, answer in zip(inputs, answers, strict=True)
        ]
    return replace(worst(found), shapes=shapes, timesteps=timesteps)


@contextmanager
def _loaded(runner: Runner) -> Iterator[None]:
    """Loads the runner for the block and frees its device memory after it, even if the load fails halfway."""
    try:
        runner.load()
        yield
    finally:
        runner.unload()
        free_cached(runner.device)


def _answer(runner: Runner, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The outputs in host memory."""
    return {name: x.cpu() for name, x in runner(inputs).items()}


def passes(verdict: ParityReport, precision: str) -> None:
    """Raises EngineError when the verdict is below the precision's threshold."""
    least = THRESHOLDS[precision]
    if verdict.finite and verdict.cosine >= least.cosine and verdict.snr_db >= least.snr_db:
        return
    found = f"cosine {verdict.cosine:.6f}, {verdict.snr_db:.1f} dB" if verdict.finite else "values that are not finite"
    raise EngineError(
        f"The {precision} engine does not give the reference's result: expected cosine of at least {least.cosine} "
        f"and {least.snr_db:g} dB, found {found}."
    )


def worst(verdicts: list[ParityReport]) -> ParityReport:
    """The least favourable figure of each kind over several verdicts."""
    return ParityReport(
        cosine=min(verdict.cosine for verdict in verdicts),
        snr_db=min(verdict.snr_db for verdict in verdicts),
        max_abs=max(verdict.max_abs for verdict in verdicts),
        finite=all(verdict.finite for verdict in verdicts),
        shapes=tuple(shape for verdict in verdicts for shape in verdict.shapes),
    )


def _compare(candidate: Runner, call: Call) -> ParityReport:
    """The worst of all outputs: a large output, such as a cache, must not hide a small one.

    Raises EngineError for an output of an undeclared shape.
    """
    spec, expected = candidate.spec, call.outputs
    sizes, found = spec.network.sizes_of(call.inputs), candidate(call.inputs)
    for tensor, outputs in product(spec.network.outputs, (expected, found)):
        shape, declared = list(outputs[tensor.name].shape), list(tensor.shape_at(sizes))
        if shape != declared:
            raise EngineError(f"{spec.network.component} gives {tensor.name} as {shape}, expected {declared}.")
    names = [tensor.name for tensor in spec.network.outputs]
    return replace(worst([measure(expected[name], found[name], sizes) for name in names]), shapes=(sizes,))


def measure(expected: torch.Tensor, found: torch.Tensor, sizes: dict[str, int]) -> ParityReport:
    """The verdict on two tensors of one shape, block by block in float64 on the CPU."""
    sums, max_abs = [0.0] * 4, 0.0
    for blocks in zip(expected.flatten().split(BLOCK), found.flatten().split(BLOCK), strict=True):
        one, other = (block.cpu().double() for block in blocks)
        noise = other - one
        terms = (one @ one, other @ other, noise @ noise, one @ other)
        sums = [total + float(term) for total, term in zip(sums, terms, strict=True)]
        max_abs = max(max_abs, float(noise.abs().max()))
    if not all(map(math.isfinite, sums)):
        return ParityReport(0.0, 0.0, 0.0, False, (sizes,))
    signal, power, noise_norm = map(math.sqrt, sums[:3])
    cosine = sums[3] / (signal * power) if signal and power else float(noise_norm == 0)
    return ParityReport(min(cosine, 1.0), _decibels(signal, noise_norm), max_abs, True, (sizes,))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return MAX_SNR_DB
    return min(20 * math.log10(signal / noise), MAX_SNR_DB) if signal else 0.0
