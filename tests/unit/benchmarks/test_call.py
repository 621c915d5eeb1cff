"""The benchmark of one call: what it counts, and how a way that fails is told."""

import subprocess
import sys

import pytest
import torch

from i2v_tensorrt.benchmarks import one_call
from i2v_tensorrt.benchmarks.ladder.flops import count_tflop

META = torch.device("meta")
TEXT_TOKENS, PICTURE_TOKENS = 512, 257


def counted(layers: int) -> float:
    model = one_call.RandomWan(META, layers)
    return count_tflop(model.load("core", "bf16"), model.components["core"].spec, one_call.Setting().sizes(model))


def test_a_layer_costs_its_products_and_its_attention() -> None:
    """21 frames of latents of 30x52 patches; attention is the greater half, and 787 TFLOP a call leave it out."""
    config, tokens = one_call.CONFIGS["transformer"], 21 * 30 * 52
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
    assert one_call._wait_ready("way", way, deadline=float("inf"))
    assert "compile" in capsys.readouterr().out
    assert one_call._ask("way", way) == figures


@pytest.mark.parametrize("code", ["raise SystemExit(3)", "import time; time.sleep(60)"])
def test_a_way_that_dies_or_takes_too_long_is_not_ready(code: str) -> None:
    way = child(code)
    assert not one_call._wait_ready("way", way, deadline=0.0)
    way.wait()
