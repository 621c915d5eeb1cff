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

from ...helpers.toys import FILES, fail, move_and_link, names, publish, quarantined, replace_by, toy_spec

needs_links = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


PIPE, FOLDER = replace_by(lambda path: os.mkfifo(path)), replace_by(Path.mkdir)


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("network.bin", flip_byte, "damaged"),
        ("network.bin", lambda path: os.truncate(path, 100), "damaged"),
        ("network.bin", lambda path: os.truncate(path, 0), "damaged"),
        ("network.bin", lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged"),
        ("network.bin", Path.unlink, "missing"),
        ("data/more.bin", flip_byte, "damaged"),
        ("data/more.bin", lambda path: shutil.rmtree(path.parent), "missing"),
        ("network.bin", FOLDER, "missing"),
        pytest.param("network.bin", PIPE, "missing", marks=needs_links),
        # What a link leads to may be right now and other bytes a moment later.
        pytest.param("network.bin", move_and_link, "missing", marks=needs_links),
        pytest.param("data/more.bin", move_and_link, "missing", marks=needs_links),
        pytest.param("data/more.bin", lambda path: move_and_link(path.parent), "missing", marks=needs_links),
    ],
)
def test_a_damaged_file_is_named_and_never_handed_out(
    plan: Plan, name: str, damage: Callable[[Path], object], word: str
) -> None:
    assert {each: plan.read(each) for each in FILES} == FILES
    damage(plan.folder / name)
    for act in (lambda: plan.verify(), lambda: plan.verified(name), lambda: plan.read(name)):
        with pytest.raises(
            DamagedEngineError, match=rf"^Engine {plan.manifest.key[:12]}: the file {name} is {word}\.$"
        ):
            act()


def test_files_that_the_manifest_does_not_name_are_not_handed_out(plan: Plan) -> None:
    (plan.folder / "extra.bin").write_bytes(b"extra")
    for act in (plan.verified, plan.read):
        with pytest.raises(DamagedEngineError, match="extra.bin"):
            act("extra.bin")


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
    "folder-as-manifest": lambda folder: FOLDER(folder / FILE_NAME),
    "file-instead": replace_by(lambda path: path.write_bytes(b"not a folder")),
    "linked-manifest": lambda folder: move_and_link(folder / FILE_NAME),
    "linked-folder": move_and_link,
    "dangling-link": replace_by(lambda path: path.symlink_to(path.parent / "nowhere")),
    "pipe-as-manifest": lambda folder: PIPE(folder / FILE_NAME),
}
KINDS = [
    pytest.param(kind, marks=[needs_links] if set(kind.split("-")) & {"linked", "link", "pipe"} else [])
    for kind in TAMPERING
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tampered_engine_is_put_aside_and_can_be_built_again(
    store: EngineStore, plan: Plan, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
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


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.values[0] in ("linked-folder", "dangling-link", "file-instead")]
)
def test_publishing_replaces_what_is_no_engine_folder(store: EngineStore, plan: Plan, kind: str) -> None:
    TAMPERING[kind](plan.folder)
    publish(store, toy_spec(), {"network.bin": b"new"})
    found = store.find(plan.manifest.key)
    assert found is not None
    assert found.verified("network.bin").read_bytes() == b"new"
    assert names(store.root / ".staging") == []
    if kind == "linked-folder":
        assert (store.root.parent / "elsewhere" / FILE_NAME).is_file(), "what a link leads to is not ours to remove"


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
