"""The benchmark of one call: what it counts, and how a way that fails is told."""

import subprocess
import sys

import pytest
import torch

from i2v_tensorrt.benchmarks import call_rows, measured_child, one_call
from i2v_tensorrt.benchmarks.ladder.flops import count_tflop

META = torch.device("meta")
TEXT_TOKENS, PICTURE_TOKENS = 512, 257


def counted(layers: int) -> float:
    model = call_rows.RandomWan(META, layers)
    return count_tflop(model.load("core", "bf16"), model.components["core"].spec, call_rows.Setting().sizes(model))


def test_a_layer_costs_its_products_and_its_attention() -> None:
    """21 frames of latents of 30x52 patches; attention is the greater half, and 787 TFLOP a call leave it out."""
    config, tokens = call_rows.CONFIGS["transformer"], 21 * 30 * 52
    inner = config["num_attention_heads"] * config["attention_head_dim"]
    seen = TEXT_TOKENS + PICTURE_TOKENS
    products = 2 * tokens * (6 * inner**2 + 2 * inner * config["ffn_dim"]) + 2 * seen * 2 * inner**2
    attention = 4 * tokens * (tokens + seen) * inner
    assert counted(2) - counted(1) == pytest.approx((products + attention) / 1e12, rel=1e-6)


def child(code: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("answer", "figures"), [("print('{\"step_ms\": 2.0}')", {"step_ms": 2.0}), ("raise SystemExit(1)", {})]
)
def test_a_way_prepares_waits_and_answers(
    capsys: pytest.CaptureFixture[str], answer: str, figures: dict[str, float]
) -> None:
    """One that fails while it is measured has no figures."""
    way = child(f'print("compile", flush=True); print("ready", flush=True); input(); {answer}')
    assert measured_child.wait_ready(way, deadline=float("inf"))
    assert "compile" in capsys.readouterr().out
    assert measured_child.ask("way", way) == figures


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import time; time.sleep(60)"])
def test_a_way_that_dies_or_takes_too_long_is_not_ready(code: str) -> None:
    way = child(code)
    assert not measured_child.wait_ready(way, deadline=0.0)
    way.wait()


def test_figures_are_of_published_sizes_and_ratios_of_one_run() -> None:
    rows = {
        "inductor": {"rounds_ms": [2000.0, 2200.0], "gpu_peak_gib": 33.0, "build_s": 20.0},
        "compile": {"rounds_ms": [2400.0]},
        "16-gib": {"rounds_ms": [2310.0]},
        "8-gib": {"title": "failed", "rounds_ms": []},
    }
    found = one_call.flat_figures(call_rows.Setting(), rows)
    assert found.pop("ratio_16_gib") == pytest.approx(1.1)
    wanted = {"call_480p_bf16_ms": 2100.0, "compile_480p_ms": 2400.0, "peak_gib": 33.0, "build_s": 20.0}
    assert found == wanted
    large = one_call.flat_figures(call_rows.Setting(1280, 720), rows)
    assert large == {"call_720p_bf16_ms": 2100.0, "compile_720p_ms": 2400.0}
    assert one_call.flat_figures(call_rows.Setting(640, 480), rows) == {}
    assert one_call.flat_figures(call_rows.Setting(layers=2), rows) == {}
