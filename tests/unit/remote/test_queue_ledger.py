"""The ledger: what a later run reads of what an earlier one wrote."""

import errno
import json
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.remote.batch.ledger import LEDGER, Job, Ledger, MadeFile, exclusive_lock
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
    assert [path.name for path in tmp_path.iterdir()] == [LEDGER]
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
def test_a_ledger_that_cannot_be_read_is_never_overwritten(tmp_path: Path, content: str) -> None:
    (tmp_path / LEDGER).write_text(content)
    with pytest.raises(StorageError, match="move it away"):
        Ledger(tmp_path)
    assert (tmp_path / LEDGER).read_text() == content


def test_a_ledger_that_cannot_be_written_keeps_what_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = finished(tmp_path)
    before = (tmp_path / LEDGER).read_text()
    monkeypatch.setattr(Path, "write_text", fail(errno.ENOSPC))
    with pytest.raises(StorageError, match="No space left"):
        ledger.queued(Job((), None, "w9", "b"), "later")
    assert json.loads((tmp_path / LEDGER).read_text("utf-8")) == json.loads(before)
    assert {path.name for path in tmp_path.iterdir()} == {LEDGER, "a.mp4"}


def test_a_folder_has_one_user_at_a_time_and_is_no_file(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "out"
    with exclusive_lock(folder), pytest.raises(StorageError, match="another queue"), exclusive_lock(folder):
        pass
    with exclusive_lock(folder):
        pass
    (tmp_path / "out").write_text("")
    with pytest.raises(StorageError, match="should be a folder"), exclusive_lock(tmp_path / "out"):
        pass
