"""The gate: it lets pass what computes the same, and nothing else."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, Scope
from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.build import parity
from i2v_tensorrt.engine_builder.build.parity import (
    THRESHOLDS,
    TIMESTEPS,
    check_parity,
    measure,
    passes,
    timesteps_of,
    worst,
)
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.manifest import ParityReport
from i2v_tensorrt.pipeline.models.registry import open_model

from ...helpers.toys import CPU, LIMITS, Computed, ToyNetwork, toy_spec

Change = Callable[[torch.Tensor], torch.Tensor]

WRONG: dict[str, Change] = {
    "swapped guidance halves": lambda x: x.flip(0),
    "permuted frames": lambda x: x.roll(1, 2),
    "swapped sides": lambda x: x.transpose(3, 4).reshape(x.shape),
    "shifted by a pixel": lambda x: x.roll(1, 4),
    "one branch twice": lambda x: x[:1].expand_as(x),
    "zeros": torch.zeros_like,
    "scaled by 1.1": lambda x: x * 1.1,
    "one not a number": lambda x: x.index_fill(4, torch.tensor([0]), float("nan")),
    "one infinity": lambda x: x.index_fill(4, torch.tensor([0]), float("inf")),
}
HARMLESS: dict[str, tuple[str, Change]] = {
    "itself": ("fp32", lambda x: x),
    "rounding in fp32": ("fp32", lambda x: x * (1 + 1e-6)),
    "rounding in fp16": ("fp16", lambda x: x.half().float()),
    "rounding in bf16": ("bf16", lambda x: x.bfloat16().float()),
}


def changed(change: Callable[[torch.Tensor], Any]) -> torch.nn.Module:
    """The toy, whose output is not what it should be."""
    toy = ToyNetwork()
    return Computed(lambda sample, strength: change(toy(sample, strength)))


def runner(make: Callable[[], torch.nn.Module] = ToyNetwork, spec: EngineSpec | None = None) -> EagerRunner:
    return EagerRunner(spec or toy_spec(), make, CPU)


def report_on(candidate: torch.nn.Module, spec: EngineSpec | None = None) -> ParityReport:
    """The gate's figures for a module against the toy, both run by PyTorch in float32."""
    spec = spec or toy_spec()
    return check_parity(runner(spec=spec), runner(lambda: candidate, spec), spec)


def assert_refused(verdict: ParityReport, precision: str) -> None:
    with pytest.raises(EngineError) as caught:
        passes(verdict, precision)
    assert str(caught.value).startswith(f"The {precision} engine does not give the reference's result: expected ")
    assert str(caught.value).count(". ") == 0


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_result_does_not_pass_even_where_the_engine_is_tuned_for_one(fault: str) -> None:
    """Swaps are invisible in one branch, one frame or a square: those may be all that the user tuned for."""
    one = ShapeProfile({**LIMITS.ranges, "batch": DimRange(1, 1, 2), "frames": DimRange(1, 1, 16)})
    for spec in (toy_spec(), toy_spec(one)):
        verdict = report_on(changed(WRONG[fault]), spec)
        for precision in THRESHOLDS:
            assert_refused(verdict, precision)


@pytest.mark.parametrize("kind", HARMLESS)
def test_rounding_passes(kind: str) -> None:
    precision, change = HARMLESS[kind]
    verdict = report_on(changed(change))
    passes(verdict, precision)
    assert verdict.shapes == tuple(LIMITS.corners)


def test_the_device_holds_one_of_the_two_at_a_time() -> None:
    """A GPU with the room for one has to do: it is all that a clip will take."""
    held, most = set[Runner](), list[int]()

    class Counted(EagerRunner):
        def load(self) -> None:
            super().load()
            held.add(self)
            most.append(len(held))

        def unload(self) -> None:
            super().unload()
            held.discard(self)

    reference, candidate = (Counted(toy_spec(), ToyNetwork, CPU) for _ in range(2))
    assert check_parity(reference, candidate, toy_spec()).snr_db > 100
    assert (max(most), len(most), held) == (1, 2, set())


@pytest.mark.parametrize("act", ["load", "_run"])
@pytest.mark.parametrize("place", [0, 1])
def test_one_that_fails_or_loads_by_half_leaves_nothing_on_the_device(
    monkeypatch: pytest.MonkeyPatch, place: int, act: str
) -> None:
    runners = [runner(), runner()]
    real = getattr(runners[place], act)

    def act_and_fail(*given: object) -> None:
        real(*given)
        raise RuntimeError("out of order")

    monkeypatch.setattr(runners[place], act, act_and_fail)
    with pytest.raises(RuntimeError, match="out of order"):
        check_parity(runners[0], runners[1], toy_spec())
    assert not any(each.is_loaded for each in runners)


def test_an_output_of_another_shape_is_told() -> None:
    with pytest.raises(EngineError, match=r"core gives prediction as \[1, 4, 1, 4, 3\], expected \[1, 4, 1, 4, 4\]"):
        report_on(changed(lambda x: x[..., 1:]))


TIMED = toy_spec(
    inputs=(
        toy_spec().network.inputs[0],
        replace(toy_spec().network.inputs[1], scope=Scope.STEP, span=(0.0, 1000.0)),
    )
)
"""A network whose second input tells where in the schedule a step lies."""


class Schedule(torch.nn.Module):
    """Remembers the timesteps that it was asked for; wrong in one fifth of the schedule."""

    def __init__(self, wrong_from: float = 1e9) -> None:
        super().__init__()
        self.asked: list[torch.Tensor] = []
        self.wrong_from = wrong_from

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        self.asked.append(strength)
        wrong = (strength >= self.wrong_from) & (strength < self.wrong_from + 200)
        return sample * torch.where(wrong, 1.5, 1.0)[:, :, None, None, None]


def timed_report(candidate: Schedule, timesteps: int) -> ParityReport:
    return check_parity(runner(Schedule, TIMED), runner(lambda: candidate, TIMED), TIMED, timesteps)


def test_every_fifth_of_the_schedule_is_compared_at_every_shape() -> None:
    network = Schedule()
    verdict = timed_report(network, TIMESTEPS)
    passes(verdict, "fp32")
    assert (verdict.timesteps, verdict.shapes) == (5, tuple(LIMITS.corners))
    fifths = [(asked.min() // 200, asked.max() // 200) for asked in network.asked]
    assert fifths == [(number, number) for _ in LIMITS.corners for number in range(5)]


@pytest.mark.parametrize("wrong_from", [0, 200, 400, 600, 800])
def test_an_engine_that_is_wrong_in_one_part_of_the_schedule_does_not_pass(wrong_from: int) -> None:
    assert_refused(timed_report(Schedule(wrong_from), TIMESTEPS), "fp16")


def test_what_has_no_timestep_and_what_runs_on_a_cpu_is_compared_once_at_each_shape() -> None:
    found = [timesteps_of(spec, torch.device(kind)) for spec in (TIMED, toy_spec()) for kind in ("cuda", "cpu")]
    assert found == [TIMESTEPS, 1, 1, 1]
    assert timed_report(Schedule(), 1).timesteps == 1


def test_the_core_alone_has_a_timestep(tiny_folder: Path) -> None:
    components = open_model(tiny_folder).components
    for component in ("core", "vae_decoder", "text_encoder"):
        assert any(each.is_timestep for each in components[component].spec.inputs) == (component == "core")


def test_a_large_output_does_not_hide_a_small_one() -> None:
    quiet = replace(toy_spec().network.outputs[0], name="quiet")
    spec = toy_spec(outputs=(*toy_spec().network.outputs, quiet))
    reference, right, wrong = (runner(lambda n=n: changed(lambda x: (x * 1e4, x * n)), spec) for n in (1.0, 1.0, 1.1))
    verdict = check_parity(reference, right, spec)
    passes(verdict, "fp32")
    assert verdict.shapes == tuple(LIMITS.corners)
    assert_refused(check_parity(reference, wrong, spec), "fp32")


@pytest.mark.parametrize("block", [1, 3, 1 << 24])
def test_blocks_give_the_figures_of_the_whole(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "BLOCK", block)
    verdict = measure(torch.arange(10.0), torch.arange(10.0) + 0.5, {})
    assert verdict.snr_db == pytest.approx(10 * math.log10(285 / 2.5))
    assert verdict.cosine == pytest.approx(307.5 / math.sqrt(285 * 332.5))
    assert verdict.max_abs == 0.5


# The denoiser of the published architecture, at the tiny checkpoint.

DENOISER_SIZES = {"batch": 2, "frames": 5, "latent_height": 8, "latent_width": 12}
LAYERS = ("conv_in.weight", "mid_block.resnets.0.conv1.weight", "conv_out.weight", "time_embedding.linear_1.weight")


@dataclass(frozen=True)
class Denoiser:
    """The network, one set of inputs, and what it makes of them."""

    network: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    prediction: torch.Tensor

    def report_on(self, prediction: torch.Tensor | None = None) -> ParityReport:
        """Of another prediction, or of what the network gives now."""
        with torch.inference_mode():
            found = self.network(**self.inputs) if prediction is None else prediction
        return measure(self.prediction.double().flatten(), found.double().flatten(), DENOISER_SIZES)


@pytest.fixture(scope="module")
def denoiser(tiny_folder: Path) -> Denoiser:
    model = open_model(tiny_folder)
    network = model.load("core", "fp32")
    inputs = example_inputs(EngineSpec(model.components["core"].spec, ShapeProfile(), "fp32"), DENOISER_SIZES)
    with torch.inference_mode():
        return Denoiser(network, inputs, network(**inputs))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_layer_perturbed_by_a_hundredth_does_not_pass_and_the_core_does_against_itself(
    denoiser: Denoiser, layer: str
) -> None:
    weight = denoiser.network.get_parameter(layer)
    sound = weight.clone()
    weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)), alpha=1e-2)
    try:
        assert_refused(denoiser.report_on(), "fp32")
    finally:
        weight.copy_(sound)
    passes(denoiser.report_on(), "fp32")
    assert denoiser.report_on().max_abs == 0


@pytest.mark.parametrize("fault", ["swapped guidance halves", "permuted frames", "shifted by a pixel"])
@pytest.mark.parametrize("precision", THRESHOLDS)
def test_the_cores_result_in_a_wrong_order_does_not_pass(denoiser: Denoiser, fault: str, precision: str) -> None:
    assert_refused(denoiser.report_on(WRONG[fault](denoiser.prediction)), precision)


# The figures.


def vector(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("expected", "found", "cosine", "snr_db", "max_abs"),
    [
        (vector(3, 4), vector(3, 4), 1.0, 200.0, 0.0),
        (vector(3, 4), vector(3, 4.5), 27.0 / (5.0 * 29.25**0.5), 20.0, 0.5),
        (vector(3, 4), vector(-3, -4), -1.0, -6.0206, 8.0),
        (vector(1, 0), vector(0, 1), 0.0, -3.0103, 1.0),
        (vector(3e-9, 4e-9), vector(3e-9, 4e-9), 1.0, 200.0, 0.0),
        (vector(0, 0), vector(0, 0), 1.0, 200.0, 0.0),
        (vector(0, 0), vector(0, 1), 0.0, 0.0, 1.0),
        (vector(0, 1), vector(0, 0), 0.0, 0.0, 1.0),
    ],
)
def test_cosine_noise_and_greatest_difference(
    expected: torch.Tensor, found: torch.Tensor, cosine: float, snr_db: float, max_abs: float
) -> None:
    verdict = measure(expected, found, {"batch": 1})
    assert verdict.cosine == pytest.approx(cosine, abs=1e-9)
    assert verdict.snr_db == pytest.approx(snr_db, abs=1e-3)
    assert verdict.max_abs == pytest.approx(max_abs)
    assert (verdict.finite, verdict.shapes) == (True, ({"batch": 1},))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("side", ["expected", "found"])
def test_what_is_not_finite_never_passes(bad: float, side: str) -> None:
    pair = {"expected": vector(1, 2), "found": vector(1, 2), side: vector(1, bad)}
    verdict = measure(pair["expected"], pair["found"], {})
    assert not verdict.finite
    with pytest.raises(EngineError, match="not finite"):
        passes(verdict, "bf16")


@pytest.mark.parametrize("precision", THRESHOLDS)
@pytest.mark.parametrize(("cosine", "snr_db"), [(0.0, -0.1), (-1e-6, 0.0)])
def test_either_figure_below_its_threshold_is_refused(precision: str, cosine: float, snr_db: float) -> None:
    least = THRESHOLDS[precision]
    passes(ParityReport(least.cosine, least.snr_db, 1.0, True, ()), precision)
    assert_refused(ParityReport(least.cosine + cosine, least.snr_db + snr_db, 1.0, True, ()), precision)


def test_the_worst_of_each_kind_counts() -> None:
    first = ParityReport(0.9, 50.0, 1e-3, True, ({"batch": 1},))
    second = ParityReport(0.99, 40.0, 1e-4, True, ({"batch": 2},))
    assert worst([first, second]) == ParityReport(0.9, 40.0, 1e-3, True, ({"batch": 1}, {"batch": 2}))
    assert not worst([first, ParityReport(0.0, 0.0, 0.0, False, ())]).finite
