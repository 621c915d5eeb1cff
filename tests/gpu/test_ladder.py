"""What the ladder does on a GPU alone: calls in a CUDA graph, memory by stage, rows of torch.compile."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import child
from i2v_tensorrt.benchmarks.ladder.child import main
from i2v_tensorrt.benchmarks.ladder.measure import GIB, StageClock, count_kernels
from i2v_tensorrt.benchmarks.ladder.row import MEASURED, Row, read_row
from i2v_tensorrt.benchmarks.ladder.stock_way import Captured
from i2v_tensorrt.benchmarks.ladder.variants import ENGINES, REFERENCE, STOCK, Variant

from ..unit.benchmarks.conftest import MakeOrder

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _default_rates() -> Iterator[None]:
    """Row 0 turns TF32 off for its process."""
    kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = kept


def test_kernels_of_a_product_and_a_sum() -> None:
    a = torch.randn(64, 64, device=GPU)
    count = count_kernels(lambda: (a @ a, a + a), GPU)
    assert count is not None and 2 <= count <= 4


def test_the_peak_is_that_of_the_stage() -> None:
    clock = StageClock(GPU)
    block = torch.empty(1 << 28, device=GPU)
    clock.mark("encode")
    del block
    clock.mark("denoise")
    torch.empty(1 << 20, device=GPU)
    clock.mark("decode")
    assert clock.peak_gib["encode"] > 1 > clock.peak_gib["decode"]
    assert clock.used_gib["encode"] > (1 << 30) / GIB


@pytest.mark.usefixtures("graphs")
@pytest.mark.parametrize("copies", [False, True])
def test_a_call_in_a_graph_gives_what_the_call_gives(copies: bool) -> None:
    def call(x: torch.Tensor, scale: torch.Tensor, *, shift: torch.Tensor) -> torch.Tensor:
        return x * scale + shift

    def inputs(seed: int, width: int = 8) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [torch.randn(4, width, device=GPU) for _ in range(3)]

    x, scale, shift = inputs(0)
    captured = Captured(call, (x, scale), {"shift": shift}, copies=copies)
    results = []
    for seed, width in ((1, 8), (2, 8), (3, 16)):
        x, scale, shift = inputs(seed, width)
        results.append(captured(x, scale, shift=shift))
        assert torch.equal(results[-1], call(x, scale, shift=shift))
    assert torch.equal(results[0], results[1]) is not copies, "a graph writes to one place"


def climb(make_order: MakeOrder, variant: Variant) -> list[Row]:
    order = make_order(variant)
    order = replace(order, job=replace(order.job, device="cuda:0"))
    path = order.job.work_folder / "order.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(order.to_json(), "utf-8")
    main(path)
    rows = [read_row(order.rows / f"{row.name}.json") for row in variant.rows]
    assert all(row is not None and row.state == MEASURED for row in rows), rows
    return [row for row in rows if row is not None]


@pytest.mark.slow
@pytest.mark.usefixtures("graphs")
def test_rows_of_torch_compile_make_the_clip_of_row_0(make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "HOT_CLIPS", 1)
    reference, eager = (
        climb(make_order, variant)[0]
        for variant in (
            Variant(REFERENCE, "diffusers, fp32", STOCK, "fp32", 0),
            Variant("eager", "eager PyTorch", ENGINES, "fp16", 4),
        )
    )
    compiled = Variant("compile-default", "torch.compile", STOCK, "fp16", 2, compile_mode="default", captured="graph")
    plain, graph = climb(make_order, compiled)
    assert reference.figures["gpu_resident_denoise_gib"] > 0
    for row in (eager, plain, graph):
        assert row.figures["latents_cosine"] > 0.999, row
        assert row.figures["kernels_per_step"] > 10
        assert row.figures["gpu_offloaded_decode_gib"] <= row.peak_gib("resident")
    assert graph.figures["latents_snr_db"] == pytest.approx(plain.figures["latents_snr_db"], abs=1.0)
    assert "build_s" not in graph.figures and plain.figures["build_s"] > 1
