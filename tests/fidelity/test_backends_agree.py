"""The bundled model's frames through an engine are those of eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks import backends
from i2v_tensorrt.benchmarks.backends import measure
from i2v_tensorrt.benchmarks.command import main
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.runtime.demo_model import demo_model

from ..helpers.toys import CPU


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(["onnxruntime"], marks=pytest.mark.slow),
        pytest.param(["inductor", "onnxruntime"], marks=pytest.mark.torture),  # Inductor compiles for many minutes
    ],
    ids="+".join,
)
def test_every_backend_gives_the_reference_frames(
    names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "BACKENDS", {name: BACKENDS[name] for name in ["eager", *names]})
    rows = list(measure(demo_model(tmp_path), 3, CPU, tmp_path))
    others = [name for name in names if BACKENDS[name].availability(CPU).ok]
    assert [row.backend for row in rows] == ["eager", *others]
    assert rows[0].psnr_mean_db is None, "the reference is equal to itself"
    for row in rows[1:]:
        assert row.psnr_worst_db is not None
        assert row.psnr_worst_db > 80


def test_a_benchmark_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["none"]) == 2
    assert "backends" in capsys.readouterr().err
