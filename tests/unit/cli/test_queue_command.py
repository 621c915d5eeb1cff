"""`run.py queue`: its statuses, what it prints, and what it shows of the work."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from i2v_tensorrt.cli.queue_command import find_pictures, main, make_jobs
from i2v_tensorrt.remote.batch.job import Job
from i2v_tensorrt.remote.batch.progress import JobResult, Report
from i2v_tensorrt.remote.batch.workflow import UsageError, Workflow
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH, FakeComfy, running, write_pictures

JOB = Job((Path("pictures/lake.png"),), "p", "w", "lake")


@pytest.fixture
def fake() -> Iterator[FakeComfy]:
    with running() as server:
        yield server


Queue = Callable[..., tuple[int, str, str]]


@pytest.fixture
def queue(
    tmp_path: Path, fake: FakeComfy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Queue:
    """The command's status and what it says, in a folder with a workflow and three pictures."""
    monkeypatch.chdir(tmp_path)
    Path("graph.json").write_text(json.dumps(GRAPH))
    write_pictures(Path("in"), 3)

    def run(*arguments: str, graph: str = "graph.json") -> tuple[int, str, str]:
        status = main([graph, "--out", "out", "--server", fake.url, *arguments])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_folder_gives_a_line_of_json_for_each_picture(queue: Queue) -> None:
    rows, again = ([json.loads(line) for line in queue("--image", "in", "--json")[1].splitlines()] for _ in range(2))
    expected = [("done", [f"in/p0{number}.png"], None) for number in range(3)]
    assert [(row["status"], row["pictures"], row["error"]) for row in rows] == expected
    assert all(Path(file).is_file() for row in rows for file in row["files"])
    assert [(row["status"], row["files"]) for row in again] == [("skipped", row["files"]) for row in rows]
    assert queue("--image", "in")[0] == 0


def test_without_a_picture_the_workflow_runs_once(queue: Queue, fake: FakeComfy) -> None:
    status, out, _ = queue("--set", "LoadImage.image=there.png", "--set", "1.channel=red")
    assert status == 0 and out.startswith("graph: done in 2.5 s: out/graph-")
    assert fake.saved == ["there.png"]
    assert queue("--set", "LoadImage.image=other.png")[0] == 0
    assert fake.saved == ["there.png", "other.png"]


def test_a_failed_job_is_told_and_gives_status_1(queue: Queue, fake: FakeComfy) -> None:
    fake.refuses = lambda prompt: "no such checkpoint" if prompt["1"]["inputs"]["image"].startswith("p01") else ""
    status, out, _ = queue("--image", "in")
    assert (status, out.count(": done in")) == (1, 2)
    assert "p01.png: error: ComfyUI refused the prompt: no such checkpoint" in out
    fake.kill()
    status, _, error = queue("--image", "in")
    assert status == 1 and f"ComfyUI at {fake.url} cannot be reached" in error


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "7.x=1"], "no node for 7.x"),
        (["--image", "nowhere"], "Expected a picture or a folder at nowhere"),
        (["--image", "empty"], "Expected pictures in empty"),
        (["--image", "in", "--out", "in"], "two folders"),
        (["--into", "1.image"], "there is none"),
        (["--image", "in", "--into", "2.image"], "has no input image; it has frames"),
        (["--server", "ftp://x"], "A server's address is such as"),
        (None, "Expected a workflow at missing.json"),
    ],
)
def test_a_wrong_command_line_gives_one_sentence_and_status_2(
    queue: Queue, arguments: list[str] | None, told: str
) -> None:
    Path("empty").mkdir()
    status, _, error = queue(graph="missing.json") if arguments is None else queue(*arguments)
    assert status == 2 and told in error
    assert error.count("\n") == 1
    assert not Path("out").exists()


@pytest.mark.parametrize("arguments", [[], ["graph.json"], ["graph.json", "--out", "out", "--imag", "in"]])
def test_a_command_line_that_is_incomplete_or_unknown_gives_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_only_pictures_of_a_folder_are_taken_by_name_and_the_same_picture_is_one_job(tmp_path: Path) -> None:
    for name in ("b.PNG", "a.jpeg", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.png").mkdir()
    found = find_pictures([tmp_path, tmp_path / "notes.txt"], tmp_path / "out")
    assert [path.name for path in found] == ["a.jpeg", "b.PNG", "notes.txt"]
    paths = write_pictures(tmp_path, 3)
    paths[2].write_bytes(paths[0].read_bytes())
    jobs = make_jobs(Workflow(GRAPH), paths, "graph")
    assert [job.pictures for job in jobs] == [(paths[0], paths[2]), (paths[1],)]
    assert len({job.file_stem for job in jobs}) == 2
    with pytest.raises(UsageError, match="to read"):
        make_jobs(Workflow(GRAPH), [tmp_path], "graph")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(screen: io.StringIO, previews: Path | None = None) -> str:
    """A job that goes through two stages."""
    results = io.StringIO()
    report = Report(2, screen, results, False, previews)
    report.note("hello")
    report.stage(JOB, "Sampler")
    report.stage(JOB, "Sampler")
    report.progress(JOB, 5, 20)
    report.detail(JOB, "step 5 of 20")
    report.preview(JOB, b"jpeg", "image/jpeg")
    report.preview(JOB, b"png", "image/png")
    report.stage(JOB, "Decode")
    report.result(JobResult(JOB, "done", "id", (Path("out/lake.mp4"),), elapsed_s=1.25))
    report.close()
    return results.getvalue()


def test_without_a_terminal_each_stage_is_a_line() -> None:
    screen = io.StringIO()
    assert show(screen) == "lake.png: done in 1.2 s: out/lake.mp4\n"
    assert screen.getvalue().splitlines() == ["hello", "[1/2] lake.png: Sampler", "[1/2] lake.png: Decode"]


def test_a_terminal_shows_one_line_that_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("i2v_tensorrt.remote.batch.progress.REDRAW_S", 0.0)
    screen = Terminal()
    show(screen)
    drawn = screen.getvalue().split("\n", 1)[1]  # after the note
    assert "\n" not in drawn
    assert drawn.endswith("\r")
    states = [state.rstrip() for state in drawn.split("\r") if state.strip()]
    assert states[1] == "[1/2] ######------------------ 5/20 Sampler  lake.png"
    assert "step 5 of 20" in states[2]
    assert all(len(state) < 60 for state in drawn.split("\r"))


def test_previews_are_kept_in_their_order_where_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    show(io.StringIO())
    assert list(tmp_path.iterdir()) == []
    show(io.StringIO(), tmp_path / "previews")
    found = {path.name: path.read_bytes() for path in (tmp_path / "previews" / JOB.file_stem).iterdir()}
    assert found == {"0001.jpg": b"jpeg", "0002.png": b"png"}
