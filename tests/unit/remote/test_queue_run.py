"""A queue over a server that fails, forgets, vanishes and comes back: each picture once, and none lost."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.queue_command import make_jobs
from i2v_tensorrt.remote.batch.in_flight import RetryPolicy
from i2v_tensorrt.remote.batch.ledger import LEDGER, Ledger
from i2v_tensorrt.remote.batch.progress import JobResult, Report
from i2v_tensorrt.remote.batch.run import QueueRun
from i2v_tensorrt.remote.batch.workflow import Place, Workflow
from i2v_tensorrt.remote.comfyui.client import ComfyClient, ServerError
from i2v_tensorrt.tests.helpers.fake_comfy import FakeComfy, write_pictures
from i2v_tensorrt.tests.helpers.interrupts import heed_interrupts

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "2": {"class_type": "Saver", "inputs": {"frames": ["1", 0]}, "_meta": {"title": "Save"}},
}
WORKFLOW = Workflow(GRAPH, Place("1", "image"))
HASTE = RetryPolicy(
    gone_s=20, poll_s=0.5, poll_soon_s=0.02, lost_s=0.1, retry_s=0.01, longest_retry_s=0.05, answer_s=2.0
)


@pytest.fixture
def fake() -> Iterator[FakeComfy]:
    server = FakeComfy()
    server.start()
    yield server
    server.step.set()
    server.kill()


def queue(fake: FakeComfy, folder: Path, paths: list[Path], retry: RetryPolicy = HASTE) -> list[JobResult]:
    folder.mkdir(exist_ok=True)
    jobs = make_jobs(WORKFLOW, paths, "graph")
    report = Report(len(jobs), io.StringIO(), io.StringIO(), False, None)
    return QueueRun(ComfyClient(fake.url), WORKFLOW, Ledger(folder), folder, report, retry).run(jobs)


def check_whole(folder: Path, paths: list[Path], fake: FakeComfy) -> None:
    """A video for each picture and no other file, each made of its picture."""
    found = {path.name.rsplit("-", 1)[0]: path.read_bytes() for path in folder.glob("*.mp4")}
    assert sorted(found) == [path.stem for path in paths]
    assert len(list(folder.glob("*.mp4"))) == len(paths)
    assert {path.name for path in folder.iterdir() if path.suffix != ".mp4"} == {LEDGER}
    assert all(content.startswith(f"a video of {stem}-".encode()) for stem, content in found.items())
    assert all(content in fake.files.values() for content in found.values())


def wait_until(is_so: Callable[[], object]) -> None:
    """Returns once it is so; fails where it never is."""
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def verdicts(results: list[JobResult]) -> list[str]:
    return [result.verdict for result in results]


def test_each_picture_becomes_one_video(fake: FakeComfy, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 7)
    results = queue(fake, tmp_path / "out", paths)
    assert verdicts(results) == ["done"] * 7
    assert [result.job.pictures[0] for result in results] == paths
    assert results[0].elapsed_s == 2.5
    assert len(fake.saved) == 7
    check_whole(tmp_path / "out", paths, fake)


def test_what_is_done_is_not_done_again(fake: FakeComfy, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 3)
    first = queue(fake, tmp_path / "out", paths[:2])
    second = queue(fake, tmp_path / "out", paths)
    assert verdicts(second) == ["skipped", "skipped", "done"]
    assert [result.files for result in second[:2]] == [result.files for result in first]
    assert len(fake.saved) == 3


@pytest.mark.parametrize("is_known", [True, False], ids=["history", "forgotten"])
def test_a_file_that_has_gone_is_fetched_again_or_made_again(fake: FakeComfy, tmp_path: Path, is_known: bool) -> None:
    paths = write_pictures(tmp_path / "in", 2)
    gone = queue(fake, tmp_path / "out", paths)[0].files[0]
    gone.unlink()
    if not is_known:
        fake.kill()
        fake.start()
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done", "skipped"]
    assert len(fake.saved) == (2 if is_known else 3)
    check_whole(tmp_path / "out", paths, fake)


@pytest.mark.parametrize("moment", ["start", "saved"])
@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_server_killed_and_restarted_loses_nothing(fake: FakeComfy, tmp_path: Path, moment: str, at: int) -> None:
    fake.kills = {(moment, at), (moment, at + 2)}
    paths = write_pictures(tmp_path / "in", 6)
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done"] * 6
    check_whole(tmp_path / "out", paths, fake)


def test_what_a_killed_server_had_told_is_not_done_again(fake: FakeComfy, tmp_path: Path) -> None:
    def kill_in_the_middle(name: str, count: int) -> None:
        if name == "middle" and count % 5 == 0:
            wait_until(lambda: len(list((tmp_path / "out").glob("*.mp4"))) == len(fake.saved))
            fake.restart()

    fake.on_moment = kill_in_the_middle
    paths = write_pictures(tmp_path / "in", 8)
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done"] * 8
    assert fake.opened > 2
    assert sorted(name[:3] for name in fake.saved) == [path.stem for path in paths]
    check_whole(tmp_path / "out", paths, fake)


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
def test_a_request_that_fails_is_made_up_for(fake: FakeComfy, tmp_path: Path, request_line: str, fault: str) -> None:
    fake.faults[request_line].extend([fault] * 2)
    paths = write_pictures(tmp_path / "in", 4)
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done"] * 4
    assert not fake.faults[request_line]
    assert len(fake.saved) == 4
    check_whole(tmp_path / "out", paths, fake)


def test_messages_told_twice_count_once(fake: FakeComfy, tmp_path: Path) -> None:
    fake.copies = 3
    paths = write_pictures(tmp_path / "in", 4)
    assert verdicts(queue(fake, tmp_path / "out", paths)) == ["done"] * 4
    assert len(fake.saved) == len(fake.posted) == 4


def test_a_history_that_is_slow_is_waited_for(fake: FakeComfy, tmp_path: Path) -> None:
    fake.slow_history = 3
    paths = write_pictures(tmp_path / "in", 3)
    assert verdicts(queue(fake, tmp_path / "out", paths, replace(HASTE, lost_s=2.0))) == ["done"] * 3
    assert len(fake.saved) == len(fake.posted) == 3


def test_a_socket_that_breaks_is_opened_again(fake: FakeComfy, tmp_path: Path) -> None:
    fake.on_moment = lambda name, count: fake.cut_sockets() if name == "start" else None
    paths = write_pictures(tmp_path / "in", 5)
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done"] * 5
    assert fake.opened > 1
    assert len(fake.saved) == len(fake.posted) == 5


def test_a_socket_whose_other_end_has_gone_without_a_word_is_given_up(fake: FakeComfy, tmp_path: Path) -> None:
    fake.on_moment = lambda name, count: fake.restart(tells=False) if (name, count) == ("middle", 3) else None
    paths = write_pictures(tmp_path / "in", 5)
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths, replace(HASTE, answer_s=0.2)))) == ["done"] * 5
    assert fake.opened == 2
    check_whole(tmp_path / "out", paths, fake)


def test_without_any_socket_the_history_is_enough(
    fake: FakeComfy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: str) -> None:
        raise ServerError("no socket")

    monkeypatch.setattr("i2v_tensorrt.remote.comfyui.event_socket.open_socket", refuse)
    paths = write_pictures(tmp_path / "in", 4)
    assert verdicts(queue(fake, tmp_path / "out", paths)) == ["done"] * 4
    assert (fake.opened, len(fake.saved)) == (0, 4)


def test_a_server_that_stays_away_is_given_up_and_gone_on_with_later(fake: FakeComfy, tmp_path: Path) -> None:
    def leave_in_the_middle(name: str, count: int) -> None:
        if (name, count) == ("middle", 5):  # of the third
            wait_until(lambda: len(list((tmp_path / "out").glob("*.mp4"))) == 2)
            fake.kill()

    fake.on_moment = leave_in_the_middle
    paths = write_pictures(tmp_path / "in", 5)
    with pytest.raises(ServerError, match="goes on from here"):
        queue(fake, tmp_path / "out", paths, replace(HASTE, gone_s=0.3))
    fake.start()
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done"] * 3 + ["skipped"] * 2
    check_whole(tmp_path / "out", paths, fake)


def test_a_job_that_takes_the_server_down_each_time_is_given_up(fake: FakeComfy, tmp_path: Path) -> None:
    fake.on_moment = lambda name, count: fake.restart() if fake.picture[:3] == "p00" and name == "middle" else None
    paths = write_pictures(tmp_path / "in", 3)
    results = queue(fake, tmp_path / "out", paths)
    assert sorted(verdicts(results)) == ["done", "done", "error"]
    (failed,) = (result for result in results if not result.is_done)
    assert failed.job.pictures == (paths[0],)
    assert "3 times" in str(failed.error)


@pytest.mark.parametrize(("fault", "told"), [("500", "answered 500"), ("404", "answered 404")])
def test_a_request_that_always_fails_fails_its_job_alone(
    fake: FakeComfy, tmp_path: Path, fault: str, told: str
) -> None:
    paths = write_pictures(tmp_path / "in", 3)
    lasting = replace(HASTE, failures=3, ahead=1)
    fake.faults["POST /upload"].extend([fault] * (3 if fault == "500" else 1))
    results = queue(fake, tmp_path / "out", paths, lasting)
    assert sorted(verdicts(results)) == ["done", "done", "error"]
    assert told in next(str(result.error) for result in results if result.error)


def test_a_refused_job_is_told_and_tried_again_by_the_next_run(fake: FakeComfy, tmp_path: Path) -> None:
    fake.refuses = lambda prompt: "not this one" if prompt["1"]["inputs"]["image"].startswith("p01") else ""
    paths = write_pictures(tmp_path / "in", 3)
    results = queue(fake, tmp_path / "out", paths)
    assert sorted(verdicts(results)) == ["done", "done", "error"]
    assert "not this one" in str(next(result.error for result in results if result.error))
    fake.refuses = lambda prompt: ""
    assert sorted(verdicts(queue(fake, tmp_path / "out", paths))) == ["done", "skipped", "skipped"]
    check_whole(tmp_path / "out", paths, fake)


def test_a_prompt_that_somebody_deletes_is_not_queued_again(fake: FakeComfy, tmp_path: Path) -> None:
    def delete_second(name: str, count: int) -> None:
        if (name, count) == ("start", 1):
            # Once all three are there; the first waits for `step` meanwhile.
            threading.Thread(target=clear, daemon=True).start()

    def clear() -> None:
        wait_until(lambda: len(fake.posted) == 3)
        ComfyClient(fake.url).cancel(fake.posted[1])
        fake.step.set()

    fake.step.clear()
    fake.on_moment = delete_second
    paths = write_pictures(tmp_path / "in", 3)
    results = queue(fake, tmp_path / "out", paths)
    assert sorted(verdicts(results)) == ["done", "done", "interrupted"]
    assert len(fake.posted) == 3


def test_a_picture_that_changes_meanwhile_is_not_sent(fake: FakeComfy, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 5)
    fake.on_moment = lambda name, count: paths[4].write_bytes(b"another") if name == "start" else None
    results = queue(fake, tmp_path / "out", paths)
    assert sorted(verdicts(results)) == ["done"] * 4 + ["error"]
    assert "has changed" in str(next(result.error for result in results if result.error))


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

    def finish(self) -> tuple[int, list[dict[str, Any]]]:
        with self.start() as process:
            out, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        return process.returncode, [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("moment", [("start", 1), ("saved", 3)], ids=lambda moment: moment[0])
def test_a_killed_client_is_taken_over_from(fake: FakeComfy, tmp_path: Path, moment: tuple[str, int]) -> None:
    paths = write_pictures(tmp_path / "in", 5)
    client = Client(fake, tmp_path)
    with client.start() as process:
        fake.on_moment = lambda *found: process.kill() if found == moment else None
        process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    fake.on_moment = lambda name, count: None
    status, rows = client.finish()
    assert status == 0
    assert len(rows) == 5
    assert len(fake.saved) == 5  # what the dead client had queued was not queued again
    (tmp_path / "out" / ".queue.lock").unlink()
    for left in (tmp_path / "out").glob(".*.part"):
        left.unlink()  # of the killed one
    check_whole(tmp_path / "out", paths, fake)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
def test_ctrl_c_takes_ours_from_the_server_and_nobody_elses(fake: FakeComfy, tmp_path: Path) -> None:
    paths = write_pictures(tmp_path / "in", 5)
    client = Client(fake, tmp_path)
    fake.step.clear()
    with client.start() as process:
        wait_until(lambda: len(fake.posted) == 3)
        others = ComfyClient(fake.url).queue({"9": {"class_type": "Saver", "inputs": {}}}, "other", "others")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: fake.life and fake.life.interrupted)
        fake.step.set()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    server = ComfyClient(fake.url)
    wait_until(lambda: not any(server.queued()))
    assert fake.saved == ["none"]
    assert server.find_history(others) is not None
    status, rows = client.finish()
    assert (status, len(rows)) == (0, 5)
    assert sorted(name[:3] for name in fake.saved[1:]) == [path.stem for path in paths]


def test_two_queues_do_not_share_a_folder(fake: FakeComfy, tmp_path: Path) -> None:
    write_pictures(tmp_path / "in", 2)
    client = Client(fake, tmp_path)
    fake.step.clear()
    with client.start() as process:
        wait_until(lambda: fake.posted)
        assert client.finish()[0] == 1
        fake.step.set()
        process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(fake.saved) == 2
