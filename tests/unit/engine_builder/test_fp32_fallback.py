"""fp32 fallback: modules that overflow fp16 are found, computed in fp32 and noted; the others stay as they are."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.backends.base import Availability, Backend
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.compile import check_plan
from i2v_tensorrt.engine_builder.build.parity import measure, passes
from i2v_tensorrt.engine_builder.graph import fp32_fallback
from i2v_tensorrt.engine_builder.graph.fp32_fallback import HALF_MAX, WHOLE, apply_fp32_fallback
from i2v_tensorrt.engine_builder.graph.onnx_export import FILE_NAME, example_inputs, export_onnx
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.toys import CPU, InProcess, ToyBackend, raising, toy_request, toy_spec

SPEC = toy_spec(precision="fp16")
CHANNELS, WIDTH = 4, 16


class FeedForward(nn.Module):
    """Between its two layers, numbers are `loudness` times as large as those that it is given and gives."""

    def __init__(self, loudness: float = 1.0) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(CHANNELS, WIDTH), nn.Linear(WIDTH, CHANNELS)
        self.up.weight.data *= loudness
        self.down.weight.data /= loudness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(functional.gelu(self.up(x)))


class Attention(nn.Module):
    """Its scores, and nothing else, are `loudness` times as large as usual; the sum over a row of them stays 1."""

    def __init__(self, loudness: float = 1.0, mask: float = 0.0) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.loudness, self.mask = loudness, mask

    def forward(self, *, x: torch.Tensor) -> tuple[torch.Tensor]:
        q, k, v = (y.flatten(1, 3).unsqueeze(1) for y in (self.query(x), self.key(x), x))
        scores = torch.zeros(q.shape[2], q.shape[2], dtype=x.dtype)
        mask = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), self.mask)
        found = functional.scaled_dot_product_attention(self.loudness * q, self.loudness * k, v, attn_mask=mask)
        return (found.squeeze(1).reshape(x.shape),)


class Norm(nn.Module):
    """Squares in fp32, by its own care."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = 1000 * x.float()
        return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1)).to(x.dtype)


class Block(nn.Module):
    """What `deeper` leads astray, `calm` brings back."""

    def __init__(self, loudness: float = 1.0) -> None:
        super().__init__()
        self.deeper, self.calm = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS)
        self.deeper.weight.data *= loudness
        self.calm.weight.data /= loudness

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.calm(x + self.deeper(x))


class Stack(nn.Module):
    """Layers over the channels, each added to what it is given."""

    def __init__(self, *layers: nn.Module, gain: float = 1.0) -> None:
        super().__init__()
        self.layers, self.gain = nn.ModuleList(layers), gain

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        x = sample.permute(0, 2, 3, 4, 1)
        for layer in self.layers:
            x = x + (layer(x=x)[0] if isinstance(layer, Attention) else layer(x))
        return self.gain * (x.permute(0, 4, 1, 2, 3) * strength.to(x.dtype)[:, :, None, None, None])


def stack(*layers: type[nn.Module] | tuple[type[nn.Module], Any], gain: float = 1.0) -> nn.Module:
    """A stack in fp32, of the same weights every time."""
    torch.manual_seed(0)
    made = [layer[0](*layer[1:]) if isinstance(layer, tuple) else layer() for layer in layers]
    return Stack(*made, gain=gain).eval().requires_grad_(False)


def loud() -> nn.Module:
    """The second of three layers overflows in fp16 between its two products."""
    return stack(FeedForward, (FeedForward, 2.0**16), Attention).half()


def quiet() -> nn.Module:
    return stack(FeedForward, FeedForward, Attention).half()


# Found.


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        pytest.param([FeedForward, Attention, Norm, Block], (), id="nothing overflows"),
        pytest.param([FeedForward, (FeedForward, 2.0**16)], ("layers.1",), id="between two layers"),
        pytest.param([(FeedForward, 2.0**13)], ("layers.0",), id="close to the end of the range"),
        pytest.param([(Attention, 1000.0), FeedForward], ("layers.0",), id="attention's scores"),
        pytest.param([(Attention, 1.0, -float("inf"))], (), id="a mask of minus infinity"),
        pytest.param([(Attention, 1.0, -HALF_MAX)], (), id="a mask of the least number"),
        pytest.param([(Block, 2.0**16), FeedForward], ("layers.0",), id="a sum"),
        pytest.param(
            [(FeedForward, 2.0**16), FeedForward, (FeedForward, 2.0**16), Attention],
            ("layers.0", "layers.2"),
            id="several",
        ),
    ],
)
def test_the_smallest_part_that_takes_and_gives_fp16_is_found(layers: list[Any], expected: tuple[str, ...]) -> None:
    network = stack(*layers).half()
    assert apply_fp32_fallback(network, SPEC) == expected
    for sizes, seed in ((SPEC.profile.optimum, 7), (SPEC.profile.corners[0], 8)):
        inputs = example_inputs(SPEC, sizes, seed)
        with torch.no_grad():
            found, wanted = network(**inputs), stack(*layers)(**{name: x.float() for name, x in inputs.items()})
        assert found.dtype == torch.float16
        passes(measure(wanted, found, sizes), "fp16")


def test_a_part_within_another_one_is_not_named_twice() -> None:
    """Each layer overflows, and so does what they add up to: the whole is one fp32 module."""
    torch.manual_seed(0)
    inner = nn.Sequential(FeedForward(2.0**16), FeedForward(2.0**16))
    first, second = (layer for layer in inner if isinstance(layer, FeedForward))
    first.down.weight.data *= 2.0**16
    second.up.weight.data /= 2.0**16
    network = Stack(inner).half().eval().requires_grad_(False)
    assert apply_fp32_fallback(network, SPEC) == ("layers.0",)
    assert {x.dtype for x in network.parameters()} == {torch.float32}
    assert not inner[0]._forward_hooks


def test_where_the_stream_itself_overflows_the_whole_network_is_an_island() -> None:
    network = stack((FeedForward, 1.0), gain=1e-6)
    assert isinstance(network, Stack)
    feed = network.layers[0]
    assert isinstance(feed, FeedForward)
    feed.down.weight.data *= 2.0**16
    assert apply_fp32_fallback(network.half(), SPEC) == (WHOLE,)
    assert torch.isfinite(network(**example_inputs(SPEC, SPEC.profile.optimum))).all()


def test_a_result_beyond_fp16_is_refused_and_a_large_one_that_fits_is_not() -> None:
    with pytest.raises(EngineError, match="core gives numbers beyond fp16, whose largest is 65504.*choose bf16"):
        apply_fp32_fallback(stack(FeedForward, gain=30000.0).half(), SPEC)
    assert apply_fp32_fallback(stack(FeedForward, gain=3000.0).half(), SPEC) == (WHOLE,)


def test_declared_kinds_compute_in_fp32_whatever_the_numbers() -> None:
    """And an island around one of them holds it, whose own casts are gone."""
    torch.manual_seed(0)
    network = Stack(nn.LayerNorm(CHANNELS), FeedForward(2.0**16), nn.Sequential(nn.LayerNorm(CHANNELS), FeedForward()))
    plain = deepcopy(network).eval()
    declared: Any = network.half().eval()
    declared.fp32_kinds = (nn.LayerNorm,)
    assert apply_fp32_fallback(declared, SPEC) == ("every LayerNorm", "layers.1")
    dtypes: list[torch.dtype] = []
    declared.layers[2][0].register_forward_hook(lambda module, args, output: dtypes.append(module.weight.dtype))
    inputs = example_inputs(SPEC, SPEC.profile.optimum, 7)
    with torch.no_grad():
        found, wanted = declared(**inputs), plain(**{name: x.float() for name, x in inputs.items()})
    assert dtypes == [torch.float32] and found.dtype == torch.float16
    assert torch.allclose(found.float(), wanted, rtol=0.02, atol=0.02 * float(wanted.abs().max()))


def test_a_network_without_overflow_stays_as_it_is(tmp_path: Path) -> None:
    plain, looked_at = quiet(), quiet()
    assert apply_fp32_fallback(looked_at, SPEC) == ()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in looked_at.modules())
    graphs = []
    for name, network in (("plain", plain), ("looked at", looked_at)):
        (tmp_path / name).mkdir()
        graphs.append(onnx.load(export_onnx(network, SPEC, tmp_path / name)).SerializeToString(deterministic=True))
    assert graphs[0] == graphs[1]


# Built.


def build(store: EngineStore, make: Any, backend: Backend | None = None, arch: str | None = None) -> Plan:
    request = toy_request(backend or OnnxRuntimeBackend(), make, SPEC, arch=arch)
    return build_engine(request, store, InProcess()).plan


def test_without_fp32_fallback_the_parity_check_refuses_it(monkeypatch: pytest.MonkeyPatch, store: EngineStore) -> None:
    monkeypatch.setattr(fp32_fallback, "apply_fp32_fallback", lambda network, spec: ())
    with pytest.raises(EngineError, match="found values that are not finite"):
        build(store, loud)
    assert list(store.plans()) == []


def test_with_it_the_manifest_names_the_layer_and_the_first_load_meets_a_reference_with_it(store: EngineStore) -> None:
    plan = build(store, loud)
    assert plan.manifest.islands == ("layers.1",)
    assert next(iter(store.plans())).manifest == plan.manifest
    assert plan.manifest.verdict is not None
    passes(plan.manifest.verdict, "fp16")
    kinds = {tensor.data_type for tensor in onnx.load(plan.folder / FILE_NAME).graph.initializer if tensor.dims}
    assert {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16} <= kinds
    passes(check_plan(plan, OnnxRuntimeBackend(), loud, CPU), "fp16")
    forgetful = Plan(plan.folder, replace(plan.manifest, islands=()))
    with pytest.raises(EngineError, match="not finite"):
        check_plan(forgetful, OnnxRuntimeBackend(), loud, CPU)


def test_a_network_without_overflow_has_none_in_its_manifest(store: EngineStore) -> None:
    assert build(store, quiet).manifest.islands == ()


@pytest.mark.parametrize("arch", ["sm_89", "sm_120"])
def test_tensorrt_builds_a_plan_with_an_island(store: EngineStore, arch: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    plan = build(store, loud, TensorRTBackend(), arch)
    assert set(plan.manifest.files) == {PLAN}
    assert plan.manifest.islands == ("layers.1",)


@pytest.mark.parametrize(("precision", "casts"), [("fp32", True), ("bf16", True), ("fp16", False)])
def test_only_engines_in_fp16_of_a_backend_that_casts_are_looked_at(
    monkeypatch: pytest.MonkeyPatch, store: EngineStore, precision: str, casts: bool
) -> None:
    class Elsewhere(ToyBackend):
        pass

    Elsewhere.has_fp32_fallback = casts
    monkeypatch.setattr(fp32_fallback, "apply_fp32_fallback", raising(AssertionError("looked at")))
    backend = Elsewhere(available=Availability(False, "Only the build matters here."))
    request = toy_request(backend, spec=toy_spec(precision=precision))
    assert build_engine(request, store, InProcess()).plan.manifest.islands == ()
