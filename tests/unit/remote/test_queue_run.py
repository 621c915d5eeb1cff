"""A queue over a server that fails, forgets, vanishes and comes back: each picture once, and none lost."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.queue_command import make_jobs
from i2v_tensorrt.remote.batch.in_flight import RetryPolicy
from i2v_tensorrt.remote.batch.ledger import Ledger
from i2v_tensorrt.remote.batch.progress import JobResult, Report
from i2v_tensorrt.remote.batch.records import RECORDS
from i2v_tensorrt.remote.batch.run import QueueRun
from i2v_tensorrt.remote.batch.workflow import Place, Workflow
from i2v_tensorrt.remote.comfyui.client import ComfyClient, ServerError
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH, FakeComfy, running, write_pictures
from i2v_tensorrt.tests.helpers.interrupts import heed_interrupts, wait_for

WORKFLOW = Workflow(GRAPH, Place("1", "image"))
HASTE = RetryPolicy(
    gone_s=20, poll_s=0.5, poll_soon_s=0.02, lost_s=0.1, retry_s=0.01, longest_retry_s=0.05, answer_s=2.0
)


@pytest.fixture
def fake() -> Iterator[FakeComfy]:
    with running() as server:
        yield server


@dataclass(frozen=True)
class Batch:
    """Some pictures that are to become videos, by a server."""

    fake: FakeComfy
    folder: Path
    paths: list[Path]

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def queue(self, count: int | None = None, **retry: Any) -> list[JobResult]:
        """One run over the first so many of them; keywords are a policy's."""
        self.out.mkdir(exist_ok=True)
        jobs = make_jobs(WORKFLOW, self.paths[:count], "graph")
        report = Report(len(jobs), io.StringIO(), io.StringIO(), False, None)
        policy: RetryPolicy = replace(HASTE, **retry)
        return QueueRun(ComfyClient(self.fake.url), WORKFLOW, Ledger(self.out), self.out, report, policy).run(jobs)

    def ends_as(self, *verdicts: str, **retry: Any) -> None:
        """One run, of which such results come in any order."""
        assert sorted(result.verdict for result in self.queue(**retry)) == sorted(verdicts)

    def made(self) -> int:
        return len(list(self.out.glob("*.mp4")))

    def check_whole(self) -> None:
        """A video for each picture and no other file, each made of its picture."""
        found = {path.name.rsplit("-", 1)[0]: path.read_bytes() for path in self.out.glob("*.mp4")}
        assert sorted(found) == [path.stem for path in self.paths]
        assert self.made() == len(self.paths)
        assert {path.name for path in self.out.iterdir() if path.suffix != ".mp4"} == {RECORDS}
        assert all(content.startswith(f"a video of {stem}-".encode()) for stem, content in found.items())
        assert all(content in self.fake.files.values() for content in found.values())


MakeBatch = Callable[[int], Batch]


@pytest.fixture
def batch(fake: FakeComfy, tmp_path: Path) -> MakeBatch:
    return lambda count: Batch(fake, tmp_path, write_pictures(tmp_path / "in", count))


def error_of(results: list[JobResult]) -> str:
    """The one error among results of which all others are done."""
    (failed,) = (result for result in results if not result.is_done)
    assert failed.verdict == "error"
    return str(failed.error)


def test_each_picture_becomes_one_video_and_what_is_done_is_not_done_again(fake: FakeComfy, batch: MakeBatch) -> None:
    seven = batch(7)
    first = seven.queue(6)
    assert [(result.verdict, result.job.pictures[0]) for result in first] == [("done", p) for p in seven.paths[:6]]
    assert first[0].elapsed_s == 2.5
    second = seven.queue()
    assert [result.verdict for result in second] == ["skipped"] * 6 + ["done"]
    assert [result.files for result in second[:6]] == [result.files for result in first]
    assert len(fake.saved) == 7
    seven.check_whole()


@pytest.mark.parametrize("is_known", [True, False], ids=["history", "forgotten"])
def test_a_file_that_has_gone_is_fetched_again_or_made_again(fake: FakeComfy, batch: MakeBatch, is_known: bool) -> None:
    two = batch(2)
    two.queue()[0].files[0].unlink()
    if not is_known:
        fake.kill()
        fake.start()
    two.ends_as("done", "skipped")
    assert len(fake.saved) == (2 if is_known else 3)
    two.check_whole()


@pytest.mark.parametrize("moment", ["start", "saved"])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_server_killed_and_restarted_loses_nothing(fake: FakeComfy, batch: MakeBatch, moment: str, at: int) -> None:
    fake.kills = {(moment, at), (moment, at + 2)}
    six = batch(6)
    six.ends_as(*["done"] * 6)
    six.check_whole()


def test_what_a_killed_server_had_told_is_not_done_again(fake: FakeComfy, batch: MakeBatch) -> None:
    def kill_in_the_middle(name: str, count: int) -> None:
        if name == "middle" and count % 5 == 0:
            wait_for(lambda: eight.made() == len(fake.saved))
            fake.restart()

    eight = batch(8)
    fake.on_moment = kill_in_the_middle
    eight.ends_as(*["done"] * 8)
    assert fake.opened > 2
    assert sorted(name[:3] for name in fake.saved) == [path.stem for path in eight.paths]
    eight.check_whole()


FAULTS = {
    "POST /upload": ["drop", "500", "lose the answer"],
    "POST /prompt": ["drop", "503", "lose the answer"],
    "GET /queue": ["drop", "502", "cut"],
    "GET /history": ["drop", "500", "cut"],
    "GET /view": ["drop", "500", "cut"],
}


@pytest.mark.parametrize(
    ("request_line", "fault"), [(line, fault) for line, faults in FAULTS.items() for fault in faults]
)
def test_a_request_that_fails_is_made_up_for(fake: FakeComfy, batch: MakeBatch, request_line: str, fault: str) -> None:
    fake.faults[request_line].extend([fault] * 2)
    four = batch(4)
    four.ends_as(*["done"] * 4)
    assert not fake.faults[request_line]
    assert len(fake.saved) == 4
    four.check_whole()


def test_messages_told_twice_count_once_and_a_slow_history_is_waited_for(fake: FakeComfy, batch: MakeBatch) -> None:
    fake.copies, fake.slow_history = 3, 3
    four = batch(4)
    four.ends_as(*["done"] * 4, lost_s=2.0)
    assert len(fake.saved) == len(fake.posted) == 4


def test_a_socket_that_breaks_is_opened_again(fake: FakeComfy, batch: MakeBatch) -> None:
    fake.step_s = 0.02  # so that it is cut before all is done
    fake.on_moment = lambda name, count: fake.cut_sockets() if name == "start" else None
    batch(5).ends_as(*["done"] * 5)
    assert fake.opened > 1
    assert len(fake.saved) == len(fake.posted) == 5


def test_a_socket_whose_other_end_has_gone_without_a_word_is_given_up(fake: FakeComfy, batch: MakeBatch) -> None:
    fake.on_moment = lambda name, count: fake.restart(tells=False) if (name, count) == ("middle", 3) else None
    five = batch(5)
    five.ends_as(*["done"] * 5, answer_s=0.2)
    assert fake.opened == 2
    five.check_whole()


def test_without_any_socket_the_history_is_enough(
    fake: FakeComfy, batch: MakeBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> None:
        raise ServerError("no socket")

    monkeypatch.setattr("i2v_tensorrt.remote.comfyui.event_socket.open_socket", refuse)
    batch(4).ends_as(*["done"] * 4)
    assert (fake.opened, len(fake.saved)) == (0, 4)


def test_a_server_that_stays_away_is_given_up_and_gone_on_with_later(fake: FakeComfy, batch: MakeBatch) -> None:
    def leave_in_the_middle(name: str, count: int) -> None:
        if (name, count) == ("middle", 5):  # of the third
            wait_for(lambda: five.made() == 2)
            fake.kill()

    five = batch(5)
    fake.on_moment = leave_in_the_middle
    with pytest.raises(ServerError, match="goes on from here"):
        five.queue(gone_s=0.3)
    fake.start()
    five.ends_as(*["done"] * 3, *["skipped"] * 2)
    five.check_whole()


def test_a_job_that_takes_the_server_down_each_time_is_given_up(fake: FakeComfy, batch: MakeBatch) -> None:
    fake.on_moment = lambda name, count: fake.restart() if fake.picture[:3] == "p00" and name == "middle" else None
    results = batch(3).queue()
    assert "3 times" in error_of(results)
    assert [result.is_done for result in sorted(results, key=lambda each: each.job.pictures)] == [False, True, True]


@pytest.mark.parametrize("fault", ["500", "404"])
def test_a_request_that_always_fails_fails_its_job_alone(fake: FakeComfy, batch: MakeBatch, fault: str) -> None:
    fake.faults["POST /upload"].extend([fault] * (3 if fault == "500" else 1))
    results = batch(3).queue(failures=3, ahead=1)
    assert len(results) == 3 and f"answered {fault}" in error_of(results)


def test_a_refused_job_is_told_and_tried_again_by_the_next_run(fake: FakeComfy, batch: MakeBatch) -> None:
    fake.refuses = lambda prompt: "not this one" if prompt["1"]["inputs"]["image"].startswith("p01") else ""
    three = batch(3)
    results = three.queue()
    assert len(results) == 3 and "not this one" in error_of(results)
    fake.refuses = lambda prompt: ""
    three.ends_as("done", "skipped", "skipped")
    three.check_whole()


def test_a_prompt_that_somebody_deletes_is_not_queued_again(fake: FakeComfy, batch: MakeBatch) -> None:
    def delete_second(name: str, count: int) -> None:
        if (name, count) == ("start", 1):
            # Once all three are there; the first waits for `step` meanwhile.
            threading.Thread(target=clear, daemon=True).start()

    def clear() -> None:
        wait_for(lambda: len(fake.posted) == 3)
        ComfyClient(fake.url).cancel(fake.posted[1])
        fake.step.set()

    fake.step.clear()
    fake.on_moment = delete_second
    batch(3).ends_as("done", "done", "interrupted")
    assert len(fake.posted) == 3


def test_a_picture_that_changes_meanwhile_is_not_sent(fake: FakeComfy, batch: MakeBatch) -> None:
    five = batch(5)
    fake.on_moment = lambda name, count: five.paths[4].write_bytes(b"another") if name == "start" else None
    results = five.queue()
    assert len(results) == 5 and "has changed" in error_of(results)


CLIENT = """
import runpy, sys
runpy.run_path({run!r})
from i2v_tensorrt.cli.queue_command import main
raise SystemExit(main(sys.argv[1:]))
"""
RUN = Path(__file__).resolve().parents[3] / "run.py"


class Client:
    """The command in a process of its own, over a folder of pictures."""

    def __init__(self, fake: FakeComfy, folder: Path) -> None:
        (folder / "graph.json").write_text(json.dumps(GRAPH))
        self.arguments = ["graph.json", "--image", "in", "--out", "out", "--server", fake.url, "--json"]
        self.folder = folder

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", CLIENT.format(run=str(RUN)), *self.arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        before = None if sys.platform == "win32" else heed_interrupts
        return subprocess.Popen(command, cwd=self.folder, text=True, preexec_fn=before, **pipes)

    def finish(self) -> tuple[int, int]:
        """The status, and of how many pictures it told."""
        with self.start() as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, len([json.loads(line) for line in out.splitlines()])


@pytest.mark.parametrize("moment", [("start", 1), ("saved", 3)], ids=lambda moment: moment[0])
def test_a_killed_client_is_taken_over_from(
    fake: FakeComfy, batch: MakeBatch, tmp_path: Path, moment: tuple[str, int]
) -> None:
    five, client = batch(5), Client(fake, tmp_path)
    with client.start() as process:
        fake.on_moment = lambda *found: process.kill() if found == moment else None
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    fake.on_moment = lambda name, count: None
    assert client.finish() == (0, 5)
    assert len(fake.saved) == 5  # what the dead client had queued was not queued again
    for left in (five.out / ".queue.lock", *five.out.glob(".*.part")):
        left.unlink()  # of the killed one
    five.check_whole()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
def test_ctrl_c_takes_ours_from_the_server_and_nobody_elses(fake: FakeComfy, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 5)
    client = Client(fake, tmp_path)
    fake.step.clear()
    with client.start() as process:
        wait_for(lambda: len(fake.posted) == 3)
        others = ComfyClient(fake.url).queue({"9": {"class_type": "Saver", "inputs": {}}}, "other", "others")
        process.send_signal(signal.SIGINT)
        wait_for(lambda: fake.life and fake.life.interrupted)
        fake.step.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err and "Traceback" not in err
    server = ComfyClient(fake.url)
    wait_for(lambda: not any(server.queued()))
    assert fake.saved == ["none"]
    assert server.find_history(others) is not None
    assert client.finish() == (0, 5)
    assert sorted(name[:3] for name in fake.saved[1:]) == [path.stem for path in paths]


def test_two_queues_do_not_share_a_folder(fake: FakeComfy, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    client = Client(fake, tmp_path)
    fake.step.clear()
    with client.start() as process:
        wait_for(lambda: fake.posted)
        assert client.finish()[0] == 1
        fake.step.set()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(fake.saved) == 2
