"""The ladder in a process: what is asked of it, what is heard, how it is ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.engine_builder.backends.registry import AUTO, choose_backend
from i2v_tensorrt.runtime.tools import benchmark
from i2v_tensorrt.runtime.tools.benchmark import COMPILED, REFERENCE, BenchmarkOrder, row_names, run_benchmark

from ...helpers.interrupts import is_alive, wait_for
from ...helpers.stages import quiet
from ...helpers.toys import CPU

WAITING = """
import subprocess, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
try:
    print("[   0.1 s] first ...", flush=True)
    print(f"[   0.2 s]   first: {child.pid}", flush=True)
    time.sleep(600)
finally:
    child.kill()
"""
NOTHING = """
import json
from pathlib import Path
row = {"name": "eager", "title": "First", "reason": "It has no room.", "figures": {}, "ratios": {}}
out = Path(next(word for word in sys.argv if word.startswith("--out=")).removeprefix("--out="))
out.mkdir()
(out / "ladder.json").write_text(json.dumps({"rows": [row]}))
(out / "ladder.md").write_text("# Nothing")
"""
Ordered = Callable[..., BenchmarkOrder]


@pytest.fixture
def ordered(tiny_folder: Path) -> Ordered:
    """A small order for the tiny checkpoint."""

    def make(**changes: object) -> BenchmarkOrder:
        fields = {"rows": "quick", "width": 64, "height": 64, "num_frames": 2, "steps": 2, "minutes": 5}
        return BenchmarkOrder(tiny_folder, **{**fields, **changes})  # pyright: ignore[reportArgumentType]

    return make


def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    """Puts a program in the ladder's place."""
    path = tmp_path / "ladder.py"
    lines = ["import signal, sys", "signal.signal(signal.SIGTERM, signal.default_int_handler)"]
    path.write_text("\n".join([*lines, text]), "utf-8")
    monkeypatch.setattr(benchmark, "COMMAND", (str(path),))


def test_each_choice_begins_with_row_0_and_holds_what_can_run() -> None:
    auto = choose_backend(AUTO, CPU).name
    assert row_names("quick", CPU) == [REFERENCE, "eager", auto]
    every = row_names("backends", CPU)
    assert every[0] == REFERENCE and set(every) > {REFERENCE, "eager", auto}
    assert "tensorrt" not in every
    assert row_names("everything", CPU) == [*every, *COMPILED]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [({"rows": "all"}, "one of quick, backends, everything"), ({"minutes": 0}, "1 to 240"), ({"minutes": 241}, "241")],
)
def test_an_order_that_is_none(ordered: Ordered, changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ordered(**changes)


@pytest.mark.slow
def test_a_row_is_measured_and_told(ordered: Ordered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "row_names", lambda rows, device: ["eager"])
    heard: list[tuple[str, float]] = []
    found = run_benchmark(ordered(), CPU, tmp_path, lambda stage, done: heard.append((stage, done)))
    assert found.markdown.startswith("# The ladder: ")
    assert found.plot.ndim == 4 and found.plot.shape[0] == 1 and found.plot.shape[3] == 3
    assert 0 <= found.plot.min() and found.plot.max() == 1
    assert [row[0] for row in found.table.rows] == ["eager PyTorch, fp32"]
    assert found.line.startswith("fastest: eager PyTorch, fp32, ")
    fractions = [done for _, done in heard]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert "eager ..." in [stage for stage, _ in heard]


@pytest.mark.parametrize(
    ("program", "told"),
    [
        (NOTHING, r"^The benchmark measured nothing\. First: It has no room\.$"),
        ("raise SystemExit('no room left')", "ended with status 1; its last words: no room left"),
    ],
    ids=["no row at all", "a failure"],
)
def test_a_ladder_that_gives_nothing_is_an_error_with_the_reason(
    ordered: Ordered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, told: str
) -> None:
    script(monkeypatch, tmp_path, program)
    with pytest.raises(EngineError, match=told):
        run_benchmark(ordered(), CPU, tmp_path, quiet)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
def test_ending_it_ends_what_it_started(ordered: Ordered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(monkeypatch, tmp_path, WAITING)
    started: list[int] = []

    def report(stage: str, done: float) -> None:
        assert done == 0.0
        if stage.startswith("first: "):
            started.append(int(stage.removeprefix("first: ")))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_benchmark(ordered(), CPU, tmp_path, report)
    wait_for(lambda: not is_alive(started[0]))


@pytest.mark.parametrize(
    ("device", "listed", "seen"),
    [("cpu", "0,1", ""), ("cuda:0", "", "0"), ("cuda:1", "", "1"), ("cuda:1", "3,GPU-5", "GPU-5")],
)
def test_it_sees_the_device_that_comfyui_computes_on_and_no_other(
    monkeypatch: pytest.MonkeyPatch, device: str, listed: str, seen: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert benchmark._visible(torch.device(device)) == seen
