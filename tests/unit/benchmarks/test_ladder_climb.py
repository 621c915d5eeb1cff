"""The ladder's loop: what did not run says why, nothing measured is lost, and a second run goes on."""

import errno
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks.ladder import climb as climb_module
from i2v_tensorrt.benchmarks.ladder.climb import Climb, Limits
from i2v_tensorrt.benchmarks.ladder.document import Document
from i2v_tensorrt.benchmarks.ladder.job import Job
from i2v_tensorrt.benchmarks.ladder.order import order_from_json
from i2v_tensorrt.benchmarks.ladder.row import INCOMPLETE, MEASURED, MISSING, Row, RowFile
from i2v_tensorrt.benchmarks.ladder.variants import ENGINES, STOCK, Task, Variant
from i2v_tensorrt.common.errors import InputError

from ...helpers.toys import fail

EAGER = Variant("eager", "eager PyTorch", ENGINES, "fp32", 4, about_s=45)
COMPILED = Variant("compile-default", "torch.compile", STOCK, "fp32", 2, compile_mode="default", captured="graph")
HOT = {"clip_hot_s": 2.0, "denoise_s": 1.5}

Child = Callable[[dict[str, RowFile]], str]


class Children:
    """Stands in for processes: writes the rows that a test wants, and says how it ended."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.timeouts: list[float | None] = []
        self.environments: list[dict[str, str]] = []
        self.act: Child = measured
        monkeypatch.setattr(climb_module, "run_order", self._run)

    def _run(self, path: Path, log: Path, timeout_s: float | None, environment: dict[str, str]) -> str:
        order = order_from_json(path.read_text("utf-8"))
        self.timeouts.append(timeout_s)
        self.environments.append(environment)
        suffix = ".warm.json" if order.kind == "warm" else ".json"
        rows = order.variant.rows[: 1 if order.kind == "warm" else None]
        return self.act({row.name: RowFile(order.rows / f"{row.name}{suffix}", row) for row in rows})


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Children:
    """By which every row is measured unless a test says otherwise."""
    return Children(monkeypatch)


def climb_of(job: Job, out: Path, left_s: float = math.inf, *, full_size: bool = True) -> Climb:
    document = Document(job, {"gpu": None, "processor": "x", "threads": 1}, {"torch": "2"}, "abc", "2026-11-20", {})
    for variant in (EAGER, COMPILED):
        document.rows |= {row.name: row for row in variant.rows}
    return Climb(document, Limits(time.time(), left_s + climb_module.REPORT_S, 100.0), 200, full_size, out)


def measured(files: dict[str, RowFile], figures: dict[str, float] = HOT) -> str:
    for file in files.values():
        file.add(figures)
        file.close(MEASURED)
    return ""


def test_a_measured_row_is_in_every_report_though_no_picture_can_be_drawn(
    job: Job, tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(climb_module, "save_plot", fail(errno.ENOENT))
        climb_of(job, tmp_path).run(Task(EAGER))
    assert "clip_hot_s" in (tmp_path / "ladder.json").read_text("utf-8")
    climb = climb_of(job, tmp_path / "out")
    climb.run(Task(EAGER))
    data = json.loads((tmp_path / "out" / "ladder.json").read_text("utf-8"))
    row = next(row for row in data["rows"] if row["name"] == "eager")
    assert (row["state"], row["figures"]) == (MEASURED, HOT)
    assert "eager PyTorch" in (tmp_path / "out" / "ladder.md").read_text("utf-8")
    assert (tmp_path / "out" / "ladder.png").is_file()
    assert (job.work_folder / "ladder.json").read_text("utf-8") == json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    assert str(job.work_folder.parent) not in json.dumps(data), "places on this machine are nobody's affair"


def test_an_ended_process_leaves_what_it_had_with_the_reason(job: Job, tmp_path: Path, children: Children) -> None:
    def ended(files: dict[str, RowFile]) -> str:
        files["compile-default"].add(HOT)
        return "It was ended after 100 s."

    children.act = ended
    climb = climb_of(job, tmp_path)
    climb.run(Task(COMPILED))
    told = {name: (row.state, row.reason) for name, row in climb.document.rows.items() if name != "eager"}
    reason = "It was ended after 100 s."
    assert told == {"compile-default": (INCOMPLETE, reason), "graph": (MISSING, reason)}
    assert climb.document.rows["compile-default"].figures == HOT
    assert children.timeouts == [100.0], "torch.compile has a limit of its own"
    assert reason in (tmp_path / "ladder.md").read_text("utf-8")

    def failed(files: dict[str, RowFile]) -> str:
        files["eager"].close(MISSING, "InputError: no such thing", "Traceback")
        return "Its process ended with status 1."

    children.act = failed
    climb.run(Task(EAGER))
    assert climb.document.rows["eager"].reason == "InputError: no such thing", "a reason of its own is kept"


def test_an_interruption_does_not_lose_what_was_measured(job: Job, tmp_path: Path, children: Children) -> None:
    def interrupted(files: dict[str, RowFile]) -> str:
        files["compile-default"].add(HOT)
        files["compile-default"].close(MEASURED)
        raise KeyboardInterrupt

    children.act = interrupted
    with pytest.raises(KeyboardInterrupt):
        climb_of(job, tmp_path).run(Task(COMPILED))
    rows = {row["name"]: row for row in json.loads((tmp_path / "ladder.json").read_text("utf-8"))["rows"]}
    assert (rows["compile-default"]["state"], rows["compile-default"]["figures"]) == (MEASURED, HOT)
    assert (rows["graph"]["state"], rows["graph"]["reason"]) == (MISSING, "It was interrupted.")


@pytest.mark.parametrize("full_size", [True, False])
def test_what_no_longer_fits_is_left_out_with_the_reason(
    job: Job, tmp_path: Path, children: Children, full_size: bool
) -> None:
    """At a small size everything that has a second left is tried."""
    climb = climb_of(job, tmp_path, left_s=20.0, full_size=full_size)
    climb.run(Task(EAGER))
    row = climb.document.rows["eager"]
    if full_size:
        assert children.timeouts == []
        assert row.reason.startswith("It was left out: it takes about 45 s, and ")
    else:
        assert row.state == MEASURED
        assert children.timeouts[0] is not None and children.timeouts[0] <= 20


def test_a_warm_start_joins_its_row(job: Job, tmp_path: Path, children: Children) -> None:
    climb = climb_of(job, tmp_path)
    climb.run(Task(EAGER, warm=True))
    assert children.timeouts == [], "there is no row yet that it could join"
    climb.run(Task(EAGER))
    children.act = lambda files: measured(files, {"clip_warm_start_s": 7.0})
    climb.run(Task(EAGER, warm=True))
    assert climb.document.rows["eager"].figures == {**HOT, "clip_warm_start_s": 7.0}
    children.act = lambda files: "It crashed."
    climb.run(Task(EAGER, warm=True))
    assert climb.document.rows["eager"].notes == ("Warm start: It crashed.",)


def test_what_is_called_cold_finds_no_compiled_code(job: Job, tmp_path: Path, children: Children) -> None:
    climb = climb_of(job, tmp_path)
    found: list[bool] = []

    def look(files: dict[str, RowFile]) -> str:
        folder = Path(children.environments[-1]["TORCHINDUCTOR_CACHE_DIR"])
        found.append(folder.exists())
        folder.mkdir(parents=True, exist_ok=True)
        return measured(files)

    children.act = look
    for task in (Task(COMPILED), Task(COMPILED, warm=True), Task(COMPILED)):
        climb.run(task)
    assert found == [False, True, False]


def test_a_later_run_goes_on_from_the_file(job: Job, tmp_path: Path, children: Children) -> None:
    first = climb_of(job, tmp_path)
    first.run(Task(EAGER))
    text = (tmp_path / "ladder.json").read_text("utf-8")
    second = climb_of(job, tmp_path)
    second.document.adopt(text)
    assert second.document.rows["eager"] == first.document.rows["eager"]
    second.run(Task(COMPILED))
    assert {name for name, row in second.document.rows.items() if row.state == MEASURED} == {
        "eager", "compile-default", "graph",
    }  # fmt: skip
    with pytest.raises(InputError, match="this very job"):
        climb_of(replace(job, steps=3), tmp_path).document.adopt(text)
    for none in ("", "{}", "[]", '{"rows": [{"name": "a"}], "job": {"digest": "x"}}'):
        with pytest.raises(InputError):
            second.document.adopt(none)


def test_a_row_that_no_longer_fits_does_not_lose_what_an_earlier_run_measured(
    job: Job, tmp_path: Path, children: Children
) -> None:
    climb = climb_of(job, tmp_path, left_s=0.0)
    kept = Row("eager", "eager PyTorch", MEASURED, figures=HOT)
    climb.document.rows["eager"] = kept
    climb.run(Task(EAGER))
    assert climb.document.rows["eager"] == kept
    climb.run(Task(EAGER, warm=True))
    assert climb.document.rows["eager"].figures == HOT
    assert climb.document.rows["eager"].notes[0].startswith("Warm start: It was left out")
