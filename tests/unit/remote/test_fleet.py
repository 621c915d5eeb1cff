"""The parts of a fleet without Ray: who gets which job, what counts against it, and what is published."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.remote.batch.records import HALF_WRITTEN_S, RECORDS, Records
from i2v_tensorrt.remote.batch.workflow import Place, Workflow
from i2v_tensorrt.remote.fleet.attempt import LOST_S, TRIES, Attempt, ask_to_stop, seen_tries, sweep
from i2v_tensorrt.remote.fleet.clip_job import ClipJob, Outcome
from i2v_tensorrt.remote.fleet.crew import Answer, LocalCrew, Slot
from i2v_tensorrt.remote.fleet.dispatch import Dispatcher, FleetError
from i2v_tensorrt.remote.fleet.limits import Limits
from i2v_tensorrt.remote.fleet.maker import WorkerSpec
from i2v_tensorrt.remote.fleet.prebuild import building
from i2v_tensorrt.remote.fleet.ray_crew import RayCrew, RayOptions, actor_class, slots_of
from i2v_tensorrt.remote.fleet.run import remaining
from i2v_tensorrt.remote.fleet.shared_folder import load_workflow, save_list, save_workflow
from i2v_tensorrt.remote.fleet.status import fleet_status
from i2v_tensorrt.remote.fleet.worker import Worker, publish
from i2v_tensorrt.tests.helpers.fake_comfy import GRAPH
from i2v_tensorrt.tests.helpers.interrupts import wait_for


def job_of(folder: Path, number: int, kind: str | None = None, **wish: object) -> ClipJob:
    """A job whose picture is a wish for the stand-in."""
    path = folder / f"p{number:02d}.png"
    path.write_text(json.dumps({"number": number, **wish}))
    digest = sha256(path.read_bytes()).hexdigest()
    key = sha256(f"{digest} w".encode()).hexdigest()
    return ClipJob(key, f"{path.stem}-{key[:8]}", str(path), digest, "w", kind)


DONE = Outcome("done", "w")
A, B = Slot("a", 0, "X"), Slot("b", 0, "Y")


class ScriptedCrew:
    """Places that answer each job with what the script says next: an outcome, or None for a worker that is gone."""

    def __init__(self, script: dict[str, list[Outcome | None]], slots: Sequence[Slot] = (A, B)) -> None:
        self.script, self.places = script, list(slots)
        self.started: list[Slot] = []
        self.given: list[tuple[str, Slot]] = []
        self._answers: list[Answer] = []

    def slots(self) -> Sequence[Slot]:
        return self.places

    def start(self, slot: Slot) -> None:
        self.started.append(slot)

    def submit(self, slot: Slot, job: ClipJob) -> None:
        self.given.append((job.file_stem[:3], slot))
        self._answers.append(Answer(slot, self.script.get(job.file_stem[:3], [DONE]).pop(0), "it died"))

    def wait(self, timeout_s: float) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def stop(self, slot: Slot) -> None:
        pass

    def close(self) -> None:
        pass


class Run:
    """A dispatcher over jobs, and what it has told."""

    def __init__(self, out: Path, crew: ScriptedCrew, limits: Limits | None = None) -> None:
        self.told: dict[str, Outcome] = {}
        self.notes: list[str] = []
        self.dispatcher = Dispatcher(crew, out, self._tell, self.notes.append, limits or Limits(look_s=0, restart_s=0))

    def run(self, *jobs: ClipJob) -> dict[str, Outcome]:
        for job in jobs:
            self.dispatcher.add(job)
        for _ in range(200):
            if self.dispatcher.is_idle:
                return self.told
            self.dispatcher.step(0)
        raise AssertionError("it does not end")

    def _tell(self, job: ClipJob, outcome: Outcome) -> None:
        assert job.file_stem[:3] not in self.told, "told twice"
        self.told[job.file_stem[:3]] = outcome


def test_each_job_ends_once_and_a_failure_has_its_reason(tmp_path: Path) -> None:
    bad = Outcome("failed", "w", "no clip of this")
    run = Run(tmp_path, ScriptedCrew({"p01": [bad], "p02": [None, DONE]}))
    told = run.run(*(job_of(tmp_path, number) for number in range(5)))
    assert {name: outcome.verdict for name, outcome in told.items()} == {
        f"p0{number}": "failed" if number == 1 else "done" for number in range(5)
    }
    (key,) = Records(tmp_path).keys(".open.json")
    record = Records(tmp_path).find(key)
    assert record is not None and (record.state, record.error, record.worker) == ("failed", "no clip of this", "w")


@pytest.mark.parametrize("gone", [None, Outcome("crashed", "w", "it died")], ids=["the worker", "its ComfyUI"])
def test_a_job_that_ends_its_maker_each_time_is_given_up(tmp_path: Path, gone: Outcome | None) -> None:
    crew = ScriptedCrew({"p00": [gone] * 9})
    told = Run(tmp_path, crew).run(job_of(tmp_path, 0), job_of(tmp_path, 1))
    assert told["p00"].error == "its worker ended 3 times while it made this: it died"
    assert [name for name, _ in crew.given].count("p00") == 3
    assert told["p01"].verdict == "done"


def test_a_node_that_goes_away_does_not_count_against_its_job(tmp_path: Path) -> None:
    nodes = [Slot(f"n{number}", 0) for number in range(12)]
    crew = ScriptedCrew({"p00": [None] * 6 + [DONE]}, nodes[:1])
    crew.stop = lambda slot: crew.places.__setitem__(0, nodes[nodes.index(slot) + 1])  # the next one in its place
    told = Run(tmp_path, crew).run(job_of(tmp_path, 0))
    assert told["p00"].verdict == "done" and len(crew.given) == 7
    again = ScriptedCrew({"p01": [None] * 20}, nodes[:1])
    again.stop = lambda slot: again.places.__setitem__(0, nodes[nodes.index(slot) + 1])
    assert "lost 10 times" in str(Run(tmp_path, again).run(job_of(tmp_path, 1))["p01"].error)


def test_the_count_of_ended_workers_leaves_out_a_node_that_has_gone(tmp_path: Path) -> None:
    crew = ScriptedCrew({"p00": [None] * 9}, [A])
    crew.stop = lambda slot: crew.places.__setitem__(0, B)
    told = Run(tmp_path, crew).run(job_of(tmp_path, 0))
    assert [slot for _, slot in crew.given] == [A, B, B, B]
    assert told["p00"].error == "its worker ended 3 times while it made this: it died"


def test_a_worker_that_cannot_work_costs_no_job(tmp_path: Path) -> None:
    broken = Outcome("broken", "w", "there is no ComfyUI")
    crew = ScriptedCrew({"p00": [broken, broken, DONE]}, [A])
    run = Run(tmp_path, crew)
    assert run.run(job_of(tmp_path, 0))["p00"].verdict == "done"
    assert run.notes == [f"{A.name} cannot work: there is no ComfyUI"] * 2
    crew = ScriptedCrew({"p00": [broken] * 9}, [A])
    run = Run(tmp_path, crew)
    with pytest.raises(FleetError, match="No worker can make clips: there is no ComfyUI"):
        run.run(job_of(tmp_path, 0))
    assert len(crew.given) == 3 and run.told == {}


def test_without_any_place_it_waits_and_then_says_so(tmp_path: Path) -> None:
    run = Run(tmp_path, ScriptedCrew({}, []), Limits(look_s=0, empty_s=-1))
    with pytest.raises(FleetError, match="Expected a place for a worker"):
        run.run(job_of(tmp_path, 0))
    assert run.notes == ["There is no place for a worker; waiting for one ..."]


def test_a_job_for_a_kind_of_gpu_goes_there_and_no_worker_starts_in_vain(tmp_path: Path) -> None:
    slots = [Slot("a", number, "X") for number in range(3)] + [B]
    crew = ScriptedCrew({}, slots)
    Run(tmp_path, crew).run(job_of(tmp_path, 0, "Y"), job_of(tmp_path, 1, "X"))
    assert {name: slot.kind for name, slot in crew.given} == {"p00": "Y", "p01": "X"}
    assert len(crew.started) == 2
    crew = ScriptedCrew({}, slots)
    Run(tmp_path, crew, Limits(look_s=0, workers=2)).run(*(job_of(tmp_path, number) for number in range(9)))
    assert len(crew.started) == 2 and len(crew.given) == 9


def test_a_place_that_has_gone_is_left_and_one_that_comes_is_taken(tmp_path: Path) -> None:
    crew = ScriptedCrew({}, [A])
    run = Run(tmp_path, crew)
    run.run(job_of(tmp_path, 0))
    crew.places = [B]
    run.run(job_of(tmp_path, 1), job_of(tmp_path, 2))
    assert [slot for _, slot in crew.given] == [A, B, B]


def test_a_waiting_job_is_cancelled_at_once(tmp_path: Path) -> None:
    run, job = Run(tmp_path, ScriptedCrew({})), job_of(tmp_path, 0)
    run.dispatcher.add(job)
    assert run.dispatcher.cancel(job.key) and not run.dispatcher.cancel(job.key)
    assert run.dispatcher.is_idle and run.told["p00"].verdict == "cancelled"


def test_a_running_clip_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    out = tmp_path / "out"
    crew, told = LocalCrew(WorkerSpec(str(out), "stand-in"), 1), list[Outcome]()
    dispatcher = Dispatcher(crew, out, lambda job, outcome: told.append(outcome), print)
    job = job_of(tmp_path, 0, takes_s=300)
    dispatcher.add(job)
    dispatcher.step(0)
    assert dispatcher.cancel(job.key)
    wait_for(lambda: dispatcher.step(0.1) or dispatcher.is_idle)
    crew.close()
    assert [outcome.verdict for outcome in told] == ["cancelled"]
    assert list(out.glob("*.mp4")) == list((out / RECORDS / TRIES).iterdir()) == []


def test_what_a_worker_cannot_make_is_an_outcome(tmp_path: Path) -> None:
    worker = Worker(WorkerSpec(str(tmp_path / "out"), "stand-in"), "w")
    wishes = [{"fails": "no clip of this"}, {"crashes": True}, {"takes_s": "long"}, {}]
    jobs = [job_of(tmp_path, number, **wish) for number, wish in enumerate(wishes)]
    outcomes = [worker.make(job) for job in jobs]
    assert [outcome.verdict for outcome in outcomes] == ["failed", "crashed", "failed", "done"]
    assert outcomes[0].error == "no clip of this" and "TypeError" in str(outcomes[2].error)
    assert worker.make(jobs[3]) == Outcome("done", "w", None, outcomes[3].files, outcomes[3].elapsed_s, was_there=True)
    Path(str(jobs[0].picture)).write_text("another")
    assert "has changed" in str(worker.make(jobs[0]).error)
    Path(str(jobs[0].picture)).unlink()
    assert "found none" in str(worker.make(jobs[0]).error)
    assert Outcome.from_text(outcomes[3].as_text()) == outcomes[3]
    assert ClipJob.from_text(jobs[0].as_text()) == jobs[0]


def test_of_many_tries_at_once_one_is_published(tmp_path: Path) -> None:
    job, records = job_of(tmp_path, 0), Records(tmp_path / "out")
    records.folder.mkdir()
    firsts, together = list[bool](), threading.Barrier(8)

    def finish(number: int) -> None:
        path = tmp_path / f"{number}.mp4"
        path.write_text(f"made by {number}" + "." * number)
        together.wait()
        firsts.append(publish(records, job, [path], str(number), 1.0)[1])

    threads = [threading.Thread(target=finish, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(firsts) == [False] * 7 + [True]
    (path,) = records.folder.glob("*.mp4")
    record = records.finished(job.key)
    assert record is not None and [file.name for file in record.files] == [path.name]


def test_files_of_a_try_that_died_before_its_commit_are_committed(tmp_path: Path) -> None:
    job, out = job_of(tmp_path, 0), tmp_path / "out"
    out.mkdir()
    (out / f"{job.file_stem}.mp4").write_bytes(b"whole, of a try that died")
    outcome = Worker(WorkerSpec(str(out), "stand-in")).make(job)
    assert outcome.verdict == "done" and not outcome.was_there
    assert (out / f"{job.file_stem}.mp4").read_bytes() == b"whole, of a try that died"
    assert Records(out).finished(job.key) is not None


def test_jobs_whose_files_are_gone_are_made_again(tmp_path: Path) -> None:
    jobs, out = [job_of(tmp_path, number) for number in range(3)], tmp_path / "out"
    worker = Worker(WorkerSpec(str(out), "stand-in"))
    assert [worker.make(job).verdict for job in jobs[:2]] == ["done", "done"]
    (out / f"{jobs[0].file_stem}.mp4").write_bytes(b"cut")
    assert remaining(out, jobs) == [jobs[0], jobs[2]]
    assert worker.make(jobs[0]).was_there is False and remaining(out, jobs) == [jobs[2]]
    assert b"cut" not in (out / f"{jobs[0].file_stem}.mp4").read_bytes()


def test_the_folder_tells_how_far_the_jobs_are(tmp_path: Path) -> None:
    jobs, out = [job_of(tmp_path, number) for number in range(6)], tmp_path / "out"
    save_list(out, jobs)
    Worker(WorkerSpec(str(out), "stand-in")).make(jobs[0])
    Run(out, ScriptedCrew({"p01": [Outcome("failed", "w", "why")]})).run(jobs[1])
    with Attempt(out, jobs[2].key, "lively", lambda: None), Attempt(out, jobs[3].key, "gone", lambda: None) as gone:
        long_ago = time.time() - 2 * LOST_S
        os.utime(gone.folder / "try.json", (long_ago, long_ago))
        status = fleet_status(out)
        assert status.counts() == {"waiting": 2, "running": 1, "done": 1, "failed": 1, "lost": 1}
        assert (status.running, status.lost) == ({jobs[2].key: "lively"}, {jobs[3].key: "gone"})
        assert status.failed == {jobs[1].key: "why"}
        sweep(out)
        assert [each.worker for each in seen_tries(out)] == ["lively"]
    assert fleet_status(out).counts()["waiting"] == 4


def test_what_a_killed_process_left_half_written_is_removed_when_it_is_old(tmp_path: Path) -> None:
    place = tmp_path / RECORDS
    left = [place / ".00ff.part", place / "pictures" / ".11ff.part", place / "pictures" / ".22ff.part"]
    with Attempt(tmp_path, "a" * 64, "w", lambda: None) as attempt:
        left += [attempt.folder / ".33ff.part", place / "pictures" / "whole.png"]
        (place / "pictures").mkdir()
        for path in left:
            path.touch()
        long_ago = time.time() - 2 * HALF_WRITTEN_S
        for path in (left[0], left[1], left[3], left[4]):
            os.utime(path, (long_ago, long_ago))
        sweep(tmp_path)
        assert [path.exists() for path in left] == [False, False, True, True, True]


def test_whoever_makes_a_clip_hears_of_a_wish_to_stop(tmp_path: Path) -> None:
    heard = threading.Event()
    with Attempt(tmp_path, "a" * 64, "w", heard.set) as attempt:
        assert not attempt.is_cancelled
        ask_to_stop(tmp_path, "a" * 64)
        assert heard.wait(60) and attempt.is_cancelled


def test_a_workflow_is_kept_by_its_digest(tmp_path: Path) -> None:
    workflow = Workflow(GRAPH, Place("1", "image"), {"key": "secret"})
    digest = save_workflow(tmp_path, workflow)
    assert load_workflow(tmp_path, digest) == Workflow(GRAPH, Place("1", "image"))
    (path,) = (tmp_path / RECORDS / "workflows").iterdir()
    assert "secret" not in path.read_text()
    path.write_text(path.read_text().replace("Saver", "Other"))
    with pytest.raises(InputError, match="has changed"):
        load_workflow(tmp_path, digest)
    with pytest.raises(InputError, match="cannot be read"):
        load_workflow(tmp_path, "none")


def test_engines_are_built_by_the_nodes_that_can() -> None:
    graph = {**GRAPH, "3": {"class_type": "Loader", "inputs": {"on_missing": "auto", "x": 1}}}
    assert building(Workflow(graph)).prompt["3"]["inputs"] == {"on_missing": "build", "x": 1}
    with pytest.raises(InputError, match="Expected a node with the input on_missing"):
        building(Workflow(GRAPH))


@pytest.mark.parametrize(
    ("resources", "has_gpus", "expected"),
    [
        ({"CPU": 5.0}, False, [("cpu", 0), ("cpu", 1)]),
        ({"CPU": 5.0}, True, []),
        ({"CPU": 5.0, "GPU": 2.0, "accelerator_type:H200": 1.0}, True, [("H200", 0), ("H200", 1)]),
        ({"GPU": 1.0}, True, [("gpu", 0)]),
    ],
    ids=["cores", "beside GPUs", "GPUs", "of no name"],
)
def test_a_node_has_a_place_for_each_gpu(
    resources: dict[str, float], has_gpus: bool, expected: list[tuple[str, int]]
) -> None:
    node = {"NodeID": "n", "Resources": resources, "NodeManagerHostname": "host"}
    assert [(slot.kind, slot.number) for slot in slots_of(node, has_gpus, RayOptions())] == expected


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="Expected the package ray, found none: python -m pip install"):
        RayCrew(WorkerSpec(str(tmp_path)), tmp_path, RayOptions())


def test_a_node_without_the_pack_cannot_work_and_says_so() -> None:
    actor = actor_class()("/nowhere", WorkerSpec("out").as_text(), "n/gpu-0")
    outcome = Outcome.from_text(actor.make("{}"))
    assert (outcome.verdict, outcome.worker) == ("broken", "n/gpu-0")
    assert str(outcome.error).startswith("The pack should be in /nowhere on every node: FileNotFoundError")
    actor.close()
