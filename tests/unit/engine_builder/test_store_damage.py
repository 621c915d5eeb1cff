"""Engines that were damaged or forged: each kind is seen, told in one sentence, and put aside."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import DamagedEngineError, EngineError
from i2v_tensorrt.engine_builder.store import store as store_module
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME, MAX_BYTES
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.toys import FILES, fail, names, publish, quarantined, toy_spec


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("network.bin", flip_byte, "damaged"),
        ("network.bin", lambda path: os.truncate(path, 100), "damaged"),
        ("network.bin", lambda path: os.truncate(path, 0), "damaged"),
        ("network.bin", lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged"),
        ("network.bin", lambda path: path.unlink(), "missing"),
        ("data/more.bin", flip_byte, "damaged"),
        ("data/more.bin", lambda path: shutil.rmtree(path.parent), "missing"),
        ("network.bin", lambda path: (path.unlink(), path.mkdir()), "missing"),
    ],
)
def test_a_damaged_file_is_named(plan: Plan, name: str, damage: Callable[[Path], object], word: str) -> None:
    damage(plan.folder / name)
    with pytest.raises(EngineError, match=rf"^Engine {plan.manifest.key[:12]}: the file {name} is {word}\.$"):
        plan.verify()
    with pytest.raises(EngineError, match=word):
        plan.verified(name)


@pytest.mark.skipif(os.name == "nt", reason="needs links")
@pytest.mark.parametrize("name", ["network.bin", "data/more.bin", "data"])
def test_a_link_in_the_place_of_a_file_or_its_folder_is_not_followed(plan: Plan, name: str) -> None:
    """What it leads to may be right now and other bytes a moment later."""
    elsewhere = plan.folder.parent / "elsewhere"
    (plan.folder / name).rename(elsewhere)
    (plan.folder / name).symlink_to(elsewhere)
    with pytest.raises(DamagedEngineError, match="missing"):
        plan.verify()
    with pytest.raises(DamagedEngineError, match="missing"):
        plan.read("data/more.bin" if name == "data" else name)


@pytest.mark.skipif(os.name == "nt", reason="needs pipes")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(plan: Plan) -> None:
    (plan.folder / "network.bin").unlink()
    os.mkfifo(plan.folder / "network.bin")
    with pytest.raises(DamagedEngineError, match="missing"):
        plan.read("network.bin")


def test_files_that_the_manifest_does_not_name_are_not_handed_out(plan: Plan) -> None:
    (plan.folder / "extra.bin").write_bytes(b"extra")
    with pytest.raises(EngineError, match="extra.bin"):
        plan.verified("extra.bin")


def test_a_file_that_cannot_be_read_is_an_engine_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "file_digest", fail(errno.EIO))
    with pytest.raises(EngineError, match="network.bin cannot be read"):
        plan.verified("network.bin")


def rewrite(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Changes a manifest's JSON, but not its HMAC."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / FILE_NAME).read_text())
        change(data)
        (folder / FILE_NAME).write_text(json.dumps(data))

    return apply


def text(content: str | bytes) -> Callable[[Path], None]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / FILE_NAME).write_bytes(raw) and None


def duplicate_a_key(folder: Path) -> None:
    """Adds a second `body` before the true one: most readers would take the last and see no fault."""
    whole = (folder / FILE_NAME).read_text()
    (folder / FILE_NAME).write_text(whole.replace("{", '{"body": {},', 1))


def link_the_manifest(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere.json"
    (folder / FILE_NAME).rename(elsewhere)
    (folder / FILE_NAME).symlink_to(elsewhere)


def link_the_folder(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)


def dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")


def a_pipe_as_manifest(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    os.mkfifo(folder / FILE_NAME)


def a_folder_as_manifest(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).mkdir()


TAMPERING = {
    "other-digest": rewrite(lambda data: data["body"]["files"]["network.bin"].update(sha256="0" * 64)),
    "other-verdict": rewrite(lambda data: data["body"]["verdict"].update(snr_db=200.0)),
    "other-hmac": rewrite(lambda data: data.update(hmac="0" * 64)),
    "no-hmac": rewrite(lambda data: data.pop("hmac") and None),
    "numeric-hmac": rewrite(lambda data: data.update(hmac=0)),
    "non-ascii-hmac": rewrite(lambda data: data.update(hmac="é" * 64)),
    "no-body": rewrite(lambda data: data.pop("body") and None),
    "duplicate-key": duplicate_a_key,
    "truncated": lambda folder: os.truncate(folder / FILE_NAME, 200),
    "empty": text(""),
    "list": text("[]"),
    "number": text("1" * 5000),
    "deep": text("[" * 100_000),
    "not-a-number": rewrite(lambda data: data["body"].update(build_s=float("nan"))),
    "not-utf-8": text(b"\xff\xfe{}"),
    "huge": text(" " * (MAX_BYTES + 1)),
    "missing": lambda folder: (folder / FILE_NAME).unlink(),
    "linked-manifest": link_the_manifest,
    "folder-as-manifest": a_folder_as_manifest,
    "linked-folder": link_the_folder,
    "dangling-link": dangling_link,
    "file-instead": a_file_instead,
    "pipe-as-manifest": a_pipe_as_manifest,
}
NEEDS_POSIX = {"linked-manifest", "linked-folder", "dangling-link", "pipe-as-manifest"}


@pytest.mark.parametrize("kind", TAMPERING)
def test_a_tampered_engine_is_put_aside_and_can_be_built_again(
    store: EngineStore, plan: Plan, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if os.name == "nt" and kind in NEEDS_POSIX:
        pytest.skip("needs links and pipes")
    TAMPERING[kind](plan.folder)
    assert store.find(plan.manifest.key) is None
    assert not os.path.lexists(plan.folder)
    assert len(quarantined(store)) == 1
    assert quarantined(store)[0].startswith(plan.manifest.key)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Engine {plan.manifest.key[:12]} ")
    assert "\n" not in record.getMessage()
    again = publish(store, toy_spec(), FILES)
    assert store.find(again.manifest.key) == again


@pytest.mark.parametrize("kind", ["linked-folder", "dangling-link", "file-instead"])
def test_publishing_replaces_what_is_no_engine_folder(store: EngineStore, plan: Plan, kind: str) -> None:
    if os.name == "nt" and kind in NEEDS_POSIX:
        pytest.skip("needs links")
    TAMPERING[kind](plan.folder)
    publish(store, toy_spec(), {"network.bin": b"new"})
    found = store.find(plan.manifest.key)
    assert found is not None
    assert found.verified("network.bin").read_bytes() == b"new"
    assert names(store.root / ".staging") == []
    if kind == "linked-folder":
        assert (store.root / "elsewhere" / FILE_NAME).is_file(), "what a link leads to is not ours to remove"


def test_an_engine_under_another_name_is_not_trusted(store: EngineStore, plan: Plan) -> None:
    plan.folder.rename(store.root / ("b" * 64))
    assert store.find("b" * 64) is None
    assert [name[:64] for name in quarantined(store)] == ["b" * 64]


def test_an_engine_of_another_installation_is_not_trusted(store: EngineStore, plan: Plan, tmp_path: Path) -> None:
    other = EngineStore(tmp_path / "other")
    mine = publish(other, toy_spec(), FILES)
    shutil.rmtree(mine.folder)
    shutil.copytree(plan.folder, mine.folder)
    assert other.find(mine.manifest.key) is None
    assert list(store.plans()) == [plan], "the store that it came from still has it"


def test_plans_put_the_damaged_aside_and_give_the_rest(store: EngineStore, plan: Plan) -> None:
    damaged = publish(store, toy_spec(precision="fp16"), FILES)
    TAMPERING["other-digest"](damaged.folder)
    assert list(store.plans()) == [plan]
    assert len(quarantined(store)) == 1


def test_two_who_find_the_same_damage_do_not_stumble(store: EngineStore, plan: Plan) -> None:
    shutil.rmtree(plan.folder)
    store.quarantine(plan.manifest.key, "Another process was first.")
    assert quarantined(store) == []


def test_bytes_are_checked_as_they_are_read(plan: Plan) -> None:
    assert {name: plan.read(name) for name in FILES} == FILES
    flip_byte(plan.folder / "network.bin")
    with pytest.raises(DamagedEngineError, match="network.bin is damaged"):
        plan.read("network.bin")
    (plan.folder / "network.bin").unlink()
    with pytest.raises(DamagedEngineError, match="network.bin is missing"):
        plan.read("network.bin")
    (plan.folder / "extra.bin").write_bytes(b"extra")
    with pytest.raises(DamagedEngineError, match="extra.bin"):
        plan.read("extra.bin")
