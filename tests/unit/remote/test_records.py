"""The records of jobs: on the disk at once, small, read by whoever goes on, and of older versions too."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from i2v_tensorrt.common.atomic_file import publish_first
from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.remote.batch.job import Job, MadeFile
from i2v_tensorrt.remote.batch.ledger import OLD_LEDGER, Ledger, exclusive_lock
from i2v_tensorrt.remote.batch.records import DONE, OPEN, RECORDS, Record, Records
from i2v_tensorrt.tests.helpers.toys import fail

JOB = Job((Path("a.png"),), "p1", "w1", "a")


def finished(folder: Path) -> Ledger:
    (folder / "a.mp4").write_bytes(b"12345")
    ledger = Ledger(folder)
    ledger.queued(JOB, "first")
    ledger.done(JOB, (MadeFile("a.mp4", 5),))
    return ledger


def test_each_state_is_on_the_disk_at_once(tmp_path: Path) -> None:
    ledger, states = Ledger(tmp_path), []
    for change in (ledger.queued, "one"), (ledger.failed, "so"), (ledger.queued, "2"):
        change[0](JOB, change[1])
        entry = Ledger(tmp_path).find(JOB)
        assert entry is not None
        states.append((entry.state, entry.prompt_id, entry.error))
    assert states == [("queued", "one", None), ("failed", "one", "so"), ("queued", "2", None)]
    assert [path.name for path in tmp_path.iterdir()] == [RECORDS]
    ledger, again = finished(tmp_path), Ledger(tmp_path)
    assert again.client_id == ledger.client_id
    assert again.find(JOB) == again.finished(JOB) == ledger.find(JOB)


@pytest.mark.parametrize("content", [None, b"1234"], ids=["gone", "cut off"])
def test_a_job_without_its_files_is_not_finished(tmp_path: Path, content: bytes | None) -> None:
    ledger = finished(tmp_path)
    (tmp_path / "a.mp4").unlink()
    if content is not None:
        (tmp_path / "a.mp4").write_bytes(content)
    assert ledger.finished(JOB) is None
    assert ledger.find(JOB) is not None


@pytest.mark.parametrize(
    ("job", "is_same"),
    [
        (Job((Path("other name.png"),), "p1", "w1", "other name"), True),
        (Job((Path("a.png"),), "p2", "w1", "a"), False),
        (Job((Path("a.png"),), "p1", "w2", "a"), False),
        (Job((), None, "w1", "a"), False),
    ],
    ids=["renamed", "other picture", "other workflow", "no picture"],
)
def test_a_job_is_known_by_its_picture_and_its_workflow(tmp_path: Path, job: Job, is_same: bool) -> None:
    ledger = finished(tmp_path)
    assert (ledger.finished(job) is not None) == is_same
    assert (job.file_stem == JOB.file_stem) == (is_same and job.stem == JOB.stem)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 2, "jobs": {}}', '{"version": 1, "jobs": {"k": 1}}'])
def test_an_old_ledger_that_cannot_be_read_is_never_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / OLD_LEDGER).write_text(content)
    with pytest.raises(StorageError, match="move it away"):
        Ledger(tmp_path)
    assert (tmp_path / OLD_LEDGER).read_text() == content


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 3}', '{"version": 2, "state": "done"}'])
def test_a_record_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / RECORDS / f"{JOB.key}{DONE}"
    ledger = Ledger(tmp_path)
    path.write_text(content)
    for ask in (ledger.find, ledger.finished):
        with pytest.raises(StorageError, match="remove it") as caught:
            ask(JOB)
        assert str(path) in str(caught.value)


def test_a_record_that_cannot_be_written_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = finished(tmp_path)
    before = {path.name: path.read_text() for path in (tmp_path / RECORDS).iterdir()}
    monkeypatch.setattr(Path, "write_text", fail(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"):
        ledger.queued(Job((), None, "w9", "b"), "later")
    assert {path.name: path.read_text() for path in (tmp_path / RECORDS).iterdir()} == before


OLD = {
    "version": 1,
    "client_id": "an old one",
    "jobs": {
        JOB.key: {
            "state": "done",
            "prompt_id": "first",
            "picture_digest": "p1",
            "workflow_digest": "w1",
            "pictures": ["a.png"],
            "files": [{"name": "a.mp4", "size_bytes": 5}],
            "error": None,
        }
    },
}
"""What the version before kept in one file."""


def test_a_folder_of_the_version_before_goes_on(tmp_path: Path) -> None:
    (tmp_path / OLD_LEDGER).write_text(json.dumps(OLD))
    (tmp_path / "a.mp4").write_bytes(b"12345")
    ledger, other = Ledger(tmp_path), Job((), None, "w9", "b")
    assert ledger.client_id == "an old one"
    record = ledger.finished(JOB)
    assert record is not None and (record.prompt_id, record.files) == ("first", (MadeFile("a.mp4", 5),))
    ledger.queued(other, "second")
    ledger.done(other, ())
    (tmp_path / "a.mp4").unlink()
    assert ledger.finished(JOB) is None
    ledger.queued(JOB, "third")
    again = Ledger(tmp_path)
    found = again.find(JOB)
    assert found is not None and (found.state, found.prompt_id) == ("queued", "third")
    assert again.finished(other) is not None
    assert json.loads((tmp_path / OLD_LEDGER).read_text()) == OLD


def test_a_record_is_small_and_no_other_is_written_with_it(tmp_path: Path) -> None:
    ledger = finished(tmp_path)
    first = tmp_path / RECORDS / f"{JOB.key}{DONE}"
    stamp = first.stat().st_mtime_ns
    names = tuple(Path("é" * 200) / f"{number}.png" for number in range(50))
    long = Job(names, "f" * 64, "e" * 64, "s" * 60)
    ledger.queued(long, "0" * 36)
    ledger.failed(long, "a sentence that does not end " * 1000)
    record = ledger.find(long)
    assert record is not None and record.error is not None and record.error.endswith("…")
    ledger.queued(long, "0" * 36)
    ledger.done(long, (MadeFile(f"{long.file_stem}.mp4", 1 << 30),))
    assert max(path.stat().st_size for path in (tmp_path / RECORDS).iterdir()) <= 1024
    assert first.stat().st_mtime_ns == stamp
    assert sorted(Records(tmp_path).keys()) == sorted([JOB.key, long.key])
    assert list(Records(tmp_path).keys(OPEN)) == []


def test_the_first_commit_stays(tmp_path: Path) -> None:
    records = Records(tmp_path)
    assert records.commit("a" * 64, Record("done", "", "p", "w", (), worker="quick"))
    assert not records.commit("a" * 64, Record("done", "", "p", "w", (), worker="slow"))
    record = records.finished("a" * 64)
    assert record is not None and record.worker == "quick"
    records.forget("a" * 64)
    assert records.find("a" * 64) is None and list(records.keys()) == []


@pytest.mark.parametrize("number", [None, errno.EPERM, errno.ENOTSUP], ids=["links", "no links", "not supported"])
def test_the_first_file_of_a_name_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int | None) -> None:
    if number is not None:
        monkeypatch.setattr("os.link", fail(number))
    path = tmp_path / "a.mp4"
    assert publish_first(path, lambda temporary: temporary.write_bytes(b"first"))
    assert not publish_first(path, lambda temporary: temporary.write_bytes(b"second"))
    assert path.read_bytes() == b"first" and [each.name for each in tmp_path.iterdir()] == ["a.mp4"]


def test_a_file_that_cannot_be_published_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.link", fail(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"):
        publish_first(tmp_path / "a.mp4", lambda temporary: temporary.write_bytes(b"first"))
    assert list(tmp_path.iterdir()) == []


def test_the_next_queue_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    (tmp_path / RECORDS).mkdir()
    old, older, young = tmp_path / ".0a.part", tmp_path / RECORDS / ".0b.part", tmp_path / ".0c.part"
    for path in (old, older, young):
        path.touch()
    for path in (old, older):
        os.utime(path, (0, 0))
    with exclusive_lock(tmp_path):
        assert [path.exists() for path in (old, older, young)] == [False, False, True]


def test_a_folder_has_one_user_at_a_time_and_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with exclusive_lock(folder), pytest.raises(StorageError, match="another queue"), exclusive_lock(folder):
        pass
    with exclusive_lock(folder):
        pass
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="should be a folder"), exclusive_lock(tmp_path / "out"):
        pass
