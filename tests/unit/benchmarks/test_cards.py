"""`run.py bench cards` without a GPU: what it asks for, what it writes, and its way through a live ComfyUI."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks import cards
from i2v_tensorrt.benchmarks.card_prompts import (
    CORE_MODEL,
    FULL,
    NO_ENGINES,
    SVD,
    TINY_WAN,
    Case,
    base_folder,
    cases,
    shipped,
    write_models,
)
from i2v_tensorrt.benchmarks.cards import GIB, Peak, Report, Row, balloon, measure_card, noted, sizes_of
from i2v_tensorrt.benchmarks.node_texts import Heard
from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.common.errors import I2VError
from i2v_tensorrt.remote.comfyui.messages import StatusText
from i2v_tensorrt.remote.comfyui.server import ComfyHost

HOLDER = "import sys; print('ready', flush=True); sys.stdin.read()"
ROW = Row(8.0, "quick start", "as shipped", 1.5, 2.25, None, ("8 of 16 frames at once",), False, ("a line",))


def test_every_prompt_runs_a_model_that_is_there() -> None:
    found = {case.name: case.prompt for case in cases(NO_ENGINES)}
    loaded = {name: prompt["2"]["inputs"]["checkpoint"] for name, prompt in found.items() if "2" in prompt}
    assert loaded == {"quick start": "i2v-demo", "I2VGen-XL": FULL, "SVD-XT": SVD, "tiny Wan 2.1": TINY_WAN}
    assert found["Compile Model"]["model"]["inputs"]["unet_name"] == f"{CORE_MODEL}.safetensors"
    svd = found["SVD-XT"]["4"]["inputs"]
    assert (svd["width"], svd["height"], svd["num_frames"]) == (1024, 576, 14)
    assert {prompt["3"]["inputs"]["backend"] for prompt in found.values() if "3" in prompt} == {"eager"}
    as_they_come = cases("auto")[0].prompt
    assert as_they_come == shipped(workflow_names.QUICK_START) and as_they_come["3"]["inputs"]["on_missing"] == "auto"


def test_the_memory_is_held_as_long_as_the_block_runs() -> None:
    with balloon(1, HOLDER):
        pass
    with pytest.raises(I2VError, match="says 'no room'"), balloon(1, "print('no room')"):
        pytest.fail("nothing was taken")


def test_a_peak_is_the_most_that_was_read() -> None:
    readings = iter([3, 9, 4])
    with Peak(lambda: next(readings, 5)) as peak:
        while next(readings, None) is not None:
            pass
    assert peak.most in (3, 5, 9)
    seen = iter(range(100))
    with Peak(lambda: next(seen, 100)) as peak:
        while peak.most < 5:
            pass
    assert peak.most >= 5


def test_rows_join_those_of_other_cards_and_take_the_place_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "gpu" / "cards.json"
    Report(path, NO_ENGINES).add(ROW)
    report = Report(path, NO_ENGINES)
    report.add(Row(24.0, "quick start", "as shipped", 1.0, None, "BudgetError: a | b", (), True, ()))
    report.add(Row(8.0, "quick start", "as shipped", 2.5, 2.25, None, (), False, ()))
    report.failed(12.0, "it did not start")
    with noted(report, 10.0):
        raise I2VError("Expected 10 GiB of free GPU memory, found 3.0.")
    found = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["card_gib"], row["elapsed_s"]) for row in found] == [(8.0, 2.5), (10.0, 0.0), (12.0, 0.0), (24.0, 1.0)]
    assert found[1]["error"] == "Expected 10 GiB of free GPU memory, found 3.0."
    assert sizes_of("8,12.5") == [8.0, 12.5]
    lines = path.with_suffix(".md").read_text("utf-8").splitlines()
    assert lines[-4] == "| 8 GiB | quick start: as shipped | 2.5 | 2.25 GiB | made | nothing | no |"
    assert lines[-1] == "| 24 GiB | quick start: as shipped | 1.0 | – | BudgetError: a \\| b | nothing | yes |"
    assert sorted(each.name for each in path.parent.iterdir()) == ["cards.json", "cards.md"]


@pytest.mark.comfy
@pytest.mark.slow
def test_a_small_card_in_a_live_comfyui(host: ComfyHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One prompt runs, one is refused; the server takes its device for as small as it was told."""
    models = tmp_path / "models"
    models.mkdir()
    write_models(host, models, torch.device("cpu"), full=False)
    wan = next(case for case in cases(NO_ENGINES) if case.name == "tiny Wan 2.1")
    missing = Case("missing", "no checkpoint", shipped(workflow_names.QUICK_START, {"2": {"checkpoint": "none"}}))
    measure, totals = cards.measure, list[int]()

    def noting(server: Any, *arguments: Any) -> Row:
        with urllib.request.urlopen(f"{server.url}/system_stats") as response:  # noqa: S310 - our own server
            totals.append(json.load(response)["devices"][0]["vram_total"])
        return measure(server, *arguments)

    monkeypatch.setattr(cards, "measure", noting)
    base = base_folder(tmp_path / "card", models)
    made, refused = measure_card(host, base, 8, [wan, missing], 240)
    assert totals == [8 * GIB, 8 * GIB]
    assert (made.error, made.traceback) == (None, False)
    assert any("eager" in line for line in made.gave_way)
    assert any(line.startswith("denoised in") for line in made.lines)
    assert refused.error is not None and "none" in refused.error


def test_lines_that_nodes_show_meanwhile_are_kept_once() -> None:
    heard = Heard()
    for text in ("step 1 of 2\nbuilt in 3 s", "step 2 of 2\nbuilt in 3 s"):
        heard(StatusText("5", text))
    assert heard.lines == ("step 1 of 2", "built in 3 s", "step 2 of 2")
