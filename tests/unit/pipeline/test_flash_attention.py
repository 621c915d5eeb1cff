"""FlashAttention-3 is an optional package: where it does not serve, PyTorch's attention does the work."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.pipeline.dummies.wan import write_tiny_wan
from i2v_tensorrt.pipeline.fused.kernels import flash_attention, gelu_product, residual
from i2v_tensorrt.pipeline.fused.kernels.rope import rms_rope
from i2v_tensorrt.runtime.tools.doctor import diagnose

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
CPU, HOPPER = torch.device("cpu"), torch.device("cuda", 0)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_on_a_cpu_it_is_pytorchs_attention_with_the_heads_side_by_side() -> None:
    query, key, value = normal(2, 5, 3, 8), normal(2, 7, 3, 8, seed=1), normal(2, 7, 3, 8, seed=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", query, key) / 8**0.5
    wanted = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), value).flatten(2)
    for flash in (True, False):
        torch.testing.assert_close(flash_attention.attention(query, key, value, flash=flash), wanted)


def test_norm_and_rotation_follow_their_definitions() -> None:
    x, weight = normal(2, 5, 12), 1 + 0.1 * normal(12)
    angles = normal(5, 3, seed=1)
    found = rms_rope(x, weight, 1e-6, angles.cos(), angles.sin(), fused=True)
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight
    pairs = torch.view_as_complex(normed.reshape(2, 5, 2, 3, 2).contiguous())
    wanted = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)[:, None]).flatten(3)
    torch.testing.assert_close(found, wanted)


def test_the_product_with_gelu_is_both_in_turn() -> None:
    x, weight, bias = normal(2, 3, 4), normal(5, 4, seed=1), normal(5, seed=2)
    product = x @ weight.T + bias
    inner = (2 / torch.pi) ** 0.5 * (product + 0.044715 * product**3)
    torch.testing.assert_close(gelu_product.gelu_product(x, weight, bias), product / 2 * (1 + inner.tanh()))


@pytest.mark.parametrize(
    ("capability", "found", "wanted"),
    [((9, 0), None, True), ((9, 0), object(), False), ((8, 9), None, False), ((10, 0), None, False)],
)
def test_it_is_offered_where_it_serves_and_is_missing(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], found: object, wanted: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(flash_attention, "find_spec", lambda _: found)
    assert flash_attention.is_wanted(HOPPER) is wanted
    assert not flash_attention.is_wanted(CPU)


def test_the_doctor_names_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "fa3-fwd" not in str(diagnose(CPU).table)
    monkeypatch.setattr(flash_attention, "is_wanted", lambda _: True)
    (row,) = [row for row in diagnose(CPU).table.rows if row[0] == "faster still"]
    assert row[2].startswith("Wan's engines with FlashAttention-3: ") and row[2].endswith("-m pip install fa3-fwd")


def test_a_network_brings_the_operators_that_its_engine_calls(tmp_path: Path) -> None:
    """In a process that has traced nothing: the engine comes from the store."""
    folder = write_tiny_wan(tmp_path / "wan", "wan21")
    script = (
        "import runpy, sys, torch; runpy.run_path(sys.argv[1]); from pathlib import Path\n"
        "from i2v_tensorrt.pipeline.models.registry import open_model\n"
        "model = open_model(Path(sys.argv[2]))\n"
        "model.load('core', 'fp32', model.known_rewrites['core'])\n"
        "print(*sorted(name for name in dir(torch.ops.i2v_tensorrt) if not name.startswith('_')))\n"
    )
    command = [sys.executable, "-c", script, str(CONFTEST), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert {flash_attention.NAME, gelu_product.NAME, residual.NAME} <= set(done.stdout.split())
