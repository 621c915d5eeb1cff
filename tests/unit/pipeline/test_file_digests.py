"""Digests of files are taken once, and again as soon as a file may be another one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.pipeline.models.checkpoints import file_digests
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Part
from i2v_tensorrt.pipeline.models.checkpoints.file_digests import MOST, Digested, DigestTable, Piece, take_digests
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.tests.conftest import ROOT

from ...helpers.toys import raising

LONG_AGO = 1_000_000_000


def old(path: Path, content: bytes = b"weights") -> Path:
    """A file that was written long ago."""
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


class Thing(Digested):
    """Some pieces."""

    def __init__(self, *pieces: Piece) -> None:
        self._pieces = pieces

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self._pieces


@pytest.fixture
def table(tmp_path: Path) -> DigestTable:
    found = DigestTable()
    found.keep_in(tmp_path / "user" / "digests.json")
    return found


def later(table: DigestTable) -> DigestTable:
    """The table as another process has it."""
    found = DigestTable()
    found.keep_in(table._path or Path())
    return found


def test_a_digest_is_over_texts_and_bytes_in_their_order(table: DigestTable, tmp_path: Path) -> None:
    one, other = old(tmp_path / "one", b"1" * 5_000_000), old(tmp_path / "other", b"2")
    heard: list[int] = []
    found = table.take(["a", one, "b", other], heard.append)
    assert found == hashlib.sha256(b"a" + b"1" * 5_000_000 + b"b2").hexdigest()
    assert sum(heard) == 5_000_001


def test_another_process_learns_what_is_known(tmp_path: Path) -> None:
    path, mine, other = old(tmp_path / "weights"), DigestTable(), DigestTable()
    digest = mine.take([path])
    assert other.find([path]) is None
    other.learn(mine.known)
    assert other.find([path]) == digest
    old(path, b"changed")
    assert other.find([path]) is None


def test_what_is_known_is_known_to_later_processes_and_by_links_too(table: DigestTable, tmp_path: Path) -> None:
    """As in a download's cache, whose links are made anew for every revision."""
    path = old(tmp_path / "weights")
    assert (table.find([path]), later(table).find([path])) == (None, None)
    for name in ("one", "other"):
        (tmp_path / name).symlink_to(path)
    digest = table.take([tmp_path / "one"])
    assert [each.find([path]) for each in (table, later(table))] == [digest, digest]
    assert table.find([tmp_path / "other"]) == digest
    assert table.find(["other", path]) is None


def rewritten(path: Path) -> None:
    old(path, b"WEIGHTS")


CHANGES: list[Callable[[Path], object]] = [
    rewritten,
    lambda path: os.replace(old(path.with_name("new"), b"WEIGHTS"), path),
    lambda path: old(path, b"weights!"),
    lambda path: os.utime(path, (LONG_AGO, LONG_AGO + 1)),
]


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps no time of the last change of a file's entry")
@pytest.mark.parametrize("change", CHANGES, ids=["rewritten", "replaced", "longer", "touched"])
def test_a_file_that_may_be_another_is_read_again(
    table: DigestTable, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = old(tmp_path / "weights")
    table.take([path])
    change(path)
    assert table.find([path]) is None
    assert later(table).find([path]) is None
    assert table.take([path]) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_that_was_just_written_or_changes_while_it_is_read_is_not_remembered(
    table: DigestTable, tmp_path: Path
) -> None:
    """It may change again within the same tick of the file system's clock."""
    path = tmp_path / "young"
    path.write_bytes(b"weights")
    assert table.take([path]) == hashlib.sha256(b"weights").hexdigest()
    assert table.find([path]) is None
    path = old(tmp_path / "weights", b"1" * 5_000_000)
    table.take([path], lambda count: rewritten(path))
    assert table.find([path]) is None
    assert not (tmp_path / "user" / "digests.json").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, b"[]", b"{", b'{"a": 1}', b"[" * 100_000, b"\xff\xfe", b" " * (2 << 20), None],
    ids=["empty", "zeros", "list", "cut", "foreign", "deep", "no text", "large", "folder"],
)
def test_a_damaged_table_is_made_anew(table: DigestTable, tmp_path: Path, content: bytes | None) -> None:
    path, place = old(tmp_path / "weights"), tmp_path / "user" / "digests.json"
    digest = table.take([path])
    if content is None:
        place.unlink()
        place.mkdir()
    else:
        place.write_bytes(content)
    other = later(table)
    assert other.find([path]) is None
    assert other.take([path]) == other.find([path]) == digest
    if content is not None:
        assert later(table).find([path]) == digest


def test_of_a_table_with_foreign_entries_the_others_count(table: DigestTable, tmp_path: Path) -> None:
    path, place = old(tmp_path / "weights"), tmp_path / "user" / "digests.json"
    digest = table.take([path])
    (name,) = json.loads(place.read_text())
    place.write_text(json.dumps({name: digest, "short": digest, "a" * 64: "../../x", "b" * 64: None}))
    other = later(table)
    assert other.find([path]) == digest
    other.take([old(tmp_path / "more")])
    assert len(json.loads(place.read_text())) == 2


def test_two_processes_keep_what_the_other_learned(table: DigestTable, tmp_path: Path) -> None:
    other, paths = later(table), [old(tmp_path / name) for name in "abcd"]
    digests = [each.take([path]) for each, path in zip((table, other, table, other), paths, strict=True)]
    for each in (table, other, later(table)):
        assert [each.find([path]) for path in paths] == digests


def test_a_table_has_a_bound_and_the_oldest_go_first(table: DigestTable, tmp_path: Path) -> None:
    place, newest = tmp_path / "user" / "digests.json", old(tmp_path / "newest")
    place.parent.mkdir()
    place.write_text(json.dumps({f"{number:064x}": f"{number:064x}" for number in range(MOST)}))
    table.take([newest])
    kept = list(json.loads(place.read_text()))
    assert len(kept) == MOST
    assert kept[0] == f"{1:064x}"
    assert later(table).find([newest]) is not None


@pytest.mark.skipif(os.name == "nt", reason="needs a folder that nobody can write to")
def test_a_disk_that_refuses_is_no_reason_to_stop_and_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    table, path = DigestTable(), old(tmp_path / "weights")
    table.keep_in(Path("/proc/nowhere/digests.json"))
    assert table.take([path]) == table.find([path])
    for ask in (table.find, table.take):
        with pytest.raises(CheckpointError, match="gone cannot be read: "):
            ask([tmp_path / "gone"])


# Several at a time.


@pytest.fixture
def no_digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "TABLE", DigestTable())


@pytest.mark.usefixtures("no_digests")
def test_digests_are_taken_of_several_with_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block waits until the report was heard, so that it is heard while files are read."""
    things = [Thing("a", old(tmp_path / f"{number}", bytes([number]) * 9_000_000)) for number in range(6)]
    heard, go = list[float](), threading.Event()
    add = file_digests._add_file

    def slowly(*arguments: object) -> None:
        assert go.wait(60)
        add(*arguments)  # type: ignore[arg-type]

    def report(done: float) -> None:
        heard.append(done)
        go.set()

    monkeypatch.setattr(file_digests, "_add_file", slowly)
    take_digests(things, report)
    assert heard[0] == 0.0
    assert heard == sorted(heard)
    assert all(0.0 <= done <= 1.0 for done in heard)
    for number, thing in enumerate(things):
        assert thing.sha256 == hashlib.sha256(b"a" + bytes([number]) * 9_000_000).hexdigest()


@pytest.mark.usefixtures("no_digests")
def test_who_interrupts_is_heard_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files here have no end."""
    path = old(tmp_path / "weights")

    def endless(sha: object, path: Path, tell: Callable[[int], None]) -> None:
        while True:
            tell(1)

    monkeypatch.setattr(file_digests, "_add_file", endless)
    with pytest.raises(KeyboardInterrupt):
        take_digests([Thing(path), Thing("other", path)], raising(KeyboardInterrupt()))
    assert not [thread for thread in threading.enumerate() if "ThreadPool" in thread.name]


@pytest.mark.usefixtures("no_digests")
def test_a_file_that_is_gone_ends_the_others_too(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="gone cannot be read"):
        take_digests([Thing(old(tmp_path / "there")), Thing(tmp_path / "gone")], lambda done: None)


# Checkpoints.

OPEN = """
import sys
sys.path.insert(0, {tests!r})
import conftest
from pathlib import Path
from i2v_tensorrt.pipeline.models.checkpoints.file_digests import TABLE
from i2v_tensorrt.pipeline.models.registry import open_model

def read():
    return int(open("/proc/self/io").read().split()[1])

TABLE.keep_in(Path({table!r}))
for _ in range(2):
    before = read()
    model = open_model(Path({folder!r}))
    model.take_digests(lambda done: None)
    model.components
    print(model.encode_sha256, read() - before)
"""
"""Opens a checkpoint twice, and says how many bytes were read for it each time; mapped files do not count."""


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs the system's count of what a process reads")
def test_a_checkpoint_is_read_once_whatever_the_process(tiny_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    for path in folder.rglob("*.*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    weights_bytes = sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
    script = OPEN.format(tests=str(ROOT / "tests"), folder=str(folder), table=str(tmp_path / "digests.json"))
    rows = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
        rows += [line.split() for line in done.stdout.splitlines()]
    assert len({digest for digest, _ in rows}) == 1
    first, *others = (int(count) for _, count in rows)
    assert first > weights_bytes
    assert max(others) < weights_bytes / 2


def test_the_digest_of_a_part_has_not_changed(tiny_folder: Path) -> None:
    """Another one would have every user encode and build again."""
    part: Part = open_model(tiny_folder).checkpoint.parts["unet"]
    (path,) = part.weights[""]
    sha = hashlib.sha256(part.config_sha256.encode() + path.name.encode() + path.read_bytes())
    assert part.sha256 == sha.hexdigest()
