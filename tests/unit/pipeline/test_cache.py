"""What was kept comes back whole or not at all, within bounds, and a disk that refuses costs a warning."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from i2v_tensorrt.pipeline.request import Encoded
from i2v_tensorrt.pipeline.tensor_cache import CacheLimits, ConditioningCache

from ...helpers.toys import fail, raising

KEY, OTHER, THIRD = ("a" * 64, "b" * 64, "c" * 64)


def entry(value: float = 0) -> Encoded:
    return Encoded(
        {"context": torch.full((2, 10), float(value)), "fps_emb": torch.zeros(1, 3)}, ("One.", "Zwei “drei”.")
    )


def assert_hit(cache: ConditioningCache, expected: Encoded, place: str | None = None, encode_s: float = 1.0) -> None:
    """The entry is there, with its cost; from that place, if one is named."""
    hit = cache.get(KEY)
    assert hit is not None and (hit.place, hit.encode_s) == (place or hit.place, encode_s)
    assert (hit.encoded.notes, hit.encoded.tensors.keys()) == (expected.notes, expected.tensors.keys())
    for name, tensor in expected.tensors.items():
        assert hit.encoded.tensors[name].dtype == tensor.dtype
        assert torch.equal(hit.encoded.tensors[name], tensor)


def only_file(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def kept(folder: Path, key: str = KEY) -> Path:
    """The file of an entry just written."""
    ConditioningCache(folder).put(key, entry(), 1.0)
    return next(folder.glob(f"{key}-*"))


def test_memory_hit_gives_the_entry_and_its_cost() -> None:
    cache = ConditioningCache(None)
    assert cache.get(KEY) is None
    cache.put(KEY, entry(3), 2.5)
    assert_hit(cache, entry(3), "memory", 2.5)
    assert cache.get(OTHER) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_disk_hit_after_a_restart_then_from_memory_until_that_is_cleared(tmp_path: Path, dtype: torch.dtype) -> None:
    expected = Encoded({"x": torch.arange(6).reshape(2, 3).T.to(dtype)}, ("Ünïcode: 火.",))
    ConditioningCache(tmp_path / "deep" / "cache").put(KEY, expected, 0.1)
    cache = ConditioningCache(tmp_path / "deep" / "cache")
    for _ in range(2):
        assert_hit(cache, expected, "disk", 0.1)
        assert_hit(cache, expected, "memory", 0.1)
        assert (cache.clear_memory(), cache.clear_memory()) == (1, 0)


def test_putting_again_replaces(tmp_path: Path) -> None:
    cache = ConditioningCache(tmp_path)
    cache.put(KEY, entry(1), 1.0)
    cache.put(KEY, entry(2), 1.0)
    assert only_file(tmp_path).name.startswith(KEY)
    assert_hit(cache, entry(2))
    assert_hit(ConditioningCache(tmp_path), entry(2))


def test_memory_is_bounded_and_the_least_recently_used_goes() -> None:
    size_bytes = sum(tensor.nbytes for tensor in entry().tensors.values())
    cache = ConditioningCache(None, CacheLimits(memory_bytes=2 * size_bytes))
    cache.put(KEY, entry(1), 1.0)
    cache.put(OTHER, entry(2), 1.0)
    assert cache.get(KEY) is not None
    cache.put(THIRD, entry(3), 1.0)
    assert [key for key in (KEY, OTHER, THIRD) if cache.get(key) is not None] == [KEY, THIRD]


def test_memory_keeps_the_newest_entry_alone_and_counts_what_is_held_not_what_is_seen() -> None:
    half_of_8000_bytes = Encoded({"x": torch.zeros(2, 1000)[:1]})
    for limit, each in ((1, entry()), (12_000, half_of_8000_bytes)):
        cache = ConditioningCache(None, CacheLimits(memory_bytes=limit))
        cache.put(KEY, each, 1.0)
        assert cache.get(KEY) is not None
        cache.put(OTHER, each, 1.0)
        assert cache.get(KEY) is None and cache.get(OTHER) is not None


def test_disk_is_bounded_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    size_bytes = kept(tmp_path).stat().st_size
    for age, path in enumerate((kept(tmp_path, KEY), kept(tmp_path, OTHER))):
        os.utime(path, (1000 + age, 1000 + age))
    limits = CacheLimits(disk_bytes=2 * size_bytes)
    assert ConditioningCache(tmp_path, limits).get(KEY) is not None
    ConditioningCache(tmp_path, limits).put(THIRD, entry(), 1.5)
    assert {path.name[0] for path in tmp_path.iterdir()} == {"a", "c"}


def test_a_disk_bound_smaller_than_one_entry_keeps_none_and_leaves_other_files_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    ConditioningCache(tmp_path, CacheLimits(disk_bytes=1)).put(KEY, entry(), 1.0)
    assert only_file(tmp_path).read_text() == "mine"


def assert_made_again(folder: Path) -> None:
    """Neither trusted nor in the way of a new one."""
    cache = ConditioningCache(folder)
    assert cache.get(KEY) is None
    assert list(folder.glob(f"{KEY}-*")) == []
    cache.put(KEY, entry(5), 1.0)
    assert_hit(ConditioningCache(folder), entry(5))


def test_any_flipped_bit_is_seen(tmp_path: Path) -> None:
    path = kept(tmp_path)
    data = path.read_bytes()
    for place in range(len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        assert ConditioningCache(tmp_path).get(KEY) is None, f"byte {place} of {len(data)}"
    assert_made_again(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 8, 60, -1])
def test_a_cut_entry_is_seen(tmp_path: Path, keep: int) -> None:
    path = kept(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    assert_made_again(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.rename(path.with_name(path.name.replace(OTHER, KEY))),
        lambda path: path.rename(path.with_name(f"{KEY}-{'0' * 32}.safetensors")),
        lambda path: path.rename(path.with_name(f"{KEY}-.safetensors")),
        lambda path: (path.unlink(), path.with_name(f"{KEY}-{'0' * 32}.safetensors").mkdir()),
    ],
    ids=["another_key", "another_digest", "no_digest", "a_folder"],
)
def test_an_entry_under_a_wrong_name_is_not_trusted(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    damage(kept(tmp_path, OTHER))
    assert ConditioningCache(tmp_path).get(KEY) is None


def test_a_damaged_entry_beside_a_whole_one_does_not_hide_it(tmp_path: Path) -> None:
    (tmp_path / f"{KEY}-{'0' * 32}.safetensors").write_bytes(b"rubbish")
    kept(tmp_path)
    assert_hit(ConditioningCache(tmp_path), entry())


def test_what_is_no_key_finds_nothing(tmp_path: Path) -> None:
    kept(tmp_path)
    for key in ("", "a" * 63, "A" * 64, "*", "../" + "a" * 61):
        assert ConditioningCache(tmp_path).get(key) is None


REFUSED = fail(errno.EACCES)


def test_a_folder_that_cannot_be_made_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = ConditioningCache(tmp_path / "file" / "cache")
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, entry(), 1.0)
    assert len(caplog.records) == 1 and "not kept on disk" in caplog.text
    assert cache.get(KEY) is not None
    assert ConditioningCache(tmp_path / "file" / "cache").get(KEY) is None


@pytest.mark.parametrize("call", ["os.utime", "pathlib.Path.unlink"])
def test_a_folder_that_may_only_be_read_still_serves_what_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = kept(tmp_path)
    monkeypatch.setattr(call, REFUSED)
    assert_hit(ConditioningCache(tmp_path), entry())
    path.write_bytes(b"rubbish")
    assert ConditioningCache(tmp_path).get(KEY) is None


def half_written(error: BaseException) -> Callable[[Path, bytes], None]:
    def write(self: Path, data: bytes) -> None:
        with self.open("wb") as stream:
            stream.write(data[: len(data) // 2])
        raise error

    return write


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("call", "failure"),
    [("pathlib.Path.write_bytes", half_written(FULL)), ("os.fsync", raising(FULL)), ("os.replace", raising(FULL))],
)
def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    call: str,
    failure: Callable[..., object],
) -> None:
    before = kept(tmp_path, OTHER)
    cache = ConditioningCache(tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(call, failure)
        cache.put(KEY, entry(), 1.0)
    assert "No space left" in caplog.text
    assert only_file(tmp_path) == before
    assert_hit(cache, entry(), "memory")


def test_an_interrupted_write_leaves_nothing_and_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", half_written(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        ConditioningCache(tmp_path).put(KEY, entry(), 1.0)
    assert list(tmp_path.iterdir()) == []


# Files that somebody else has put there, each with the digest that is right for it.


def forged(folder: Path, metadata: object, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """A file whose name and bytes agree, with that metadata; the header is written as it is given."""
    data = save(tensors or {"context": torch.zeros(2, 10)})
    end = 8 + int.from_bytes(data[:8], "little")
    if isinstance(metadata, str):
        header = metadata.encode()
    else:
        header = json.dumps({**json.loads(data[8:end]), "__metadata__": metadata}).encode()
    whole = len(header).to_bytes(8, "little") + header + data[end:]
    folder.mkdir()
    (folder / f"{KEY}-{hashlib.sha256(whole).hexdigest()[:32]}.safetensors").write_bytes(whole)


GOOD = {"key": KEY, "encode_s": "1.0", "notes": "[]"}
FORGED: dict[str, object] = {
    "no_metadata": {},
    "of_another": {**GOOD, "key": OTHER},
    "notes_no_list": {**GOOD, "notes": '"text"'},
    "notes_no_texts": {**GOOD, "notes": "[1, null]"},
    "notes_many": {**GOOD, "notes": json.dumps(["x"] * 10_000)},
    "notes_no_json": {**GOOD, "notes": "["},
    "notes_deep": {**GOOD, "notes": "[" * 100_000},
    "no_number": {**GOOD, "encode_s": "soon"},
    "not_a_number": {**GOOD, "encode_s": "nan"},
    "deep_header": "[" * 100_000,
    "list_header": "[]",
}


@pytest.mark.parametrize(
    ("metadata", "value"),
    [*((metadata, 0.0) for metadata in FORGED.values()), (GOOD, float("nan")), (GOOD, float("inf"))],
    ids=[*FORGED, "value_not_a_number", "value_infinite"],
)
def test_a_forged_file_is_made_again(tmp_path: Path, metadata: object, value: float) -> None:
    forged(tmp_path / "cache", metadata, {"context": torch.tensor([0.0, value])})
    assert_made_again(tmp_path / "cache")


def test_a_forged_file_that_says_the_truth_is_an_entry(tmp_path: Path) -> None:
    forged(tmp_path / "cache", GOOD)
    assert ConditioningCache(tmp_path / "cache").get(KEY) is not None


PLACED: dict[str, Callable[[Path, Path], object]] = {
    "pipe": lambda path, elsewhere: os.mkfifo(path),
    "folder": lambda path, elsewhere: path.mkdir(),
    "link": lambda path, elsewhere: path.symlink_to(elsewhere),
    # Sparse: takes no room, and no memory could hold it.
    "endless": lambda path, elsewhere: (path.touch(), os.truncate(path, 1 << 40)),
}


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize("kind", PLACED)
def test_what_is_no_plain_file_is_not_read(tmp_path: Path, kind: str) -> None:
    path = kept(tmp_path / "cache")
    elsewhere = tmp_path / "elsewhere"
    path.rename(elsewhere)
    PLACED[kind](path, elsewhere)
    cache = ConditioningCache(tmp_path / "cache")
    assert cache.get(KEY) is None
    cache.put(KEY, entry(5), 1.0)
    assert_hit(ConditioningCache(tmp_path / "cache"), entry(5))
    assert elsewhere.is_file()


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    left, young = tmp_path / ".0123456789abcdef.part", tmp_path / ".fedcba9876543210.part"
    for path in (left, young):
        path.write_bytes(b"half")
    os.utime(left, (1000, 1000))
    ConditioningCache(tmp_path).put(KEY, entry(), 1.0)
    assert not left.exists()
    assert young.exists(), "another process may be at work on it"
