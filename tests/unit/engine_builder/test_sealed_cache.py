"""Files beside an engine that save time: kept where the store wrote them, dropped when in doubt, never required."""

from __future__ import annotations

import errno
import logging
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.engine_builder.store import sealed_cache
from i2v_tensorrt.engine_builder.store.sealed_cache import SealedCache
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.toys import FILES, fail, move_and_link, names, publish, replace_by, toy_spec

NAME = "kernels.cache"
DATA = bytes(range(256)) * 8


@pytest.fixture
def cache(plan: Plan) -> SealedCache:
    found = plan.side(NAME)
    assert found is not None
    found.write(DATA)
    return found


def test_what_was_written_is_read_by_whoever_finds_the_engine(
    store: EngineStore, plan: Plan, cache: SealedCache
) -> None:
    found = EngineStore(store.root).find(plan.manifest.key)
    assert found == plan
    again = found.side(NAME)
    assert again is not None
    assert again.read() == DATA
    again.write(b"newer")
    assert cache.read() == b"newer"
    assert names(store.root / ".staging") == []
    found.verify()


def test_there_is_none_before_it_was_written_and_after_the_engine_is_gone(store: EngineStore, plan: Plan) -> None:
    assert Plan(plan.folder, plan.manifest).side(NAME) is None, "nor beside an engine that is not published"
    cache = plan.side(NAME)
    assert cache is not None
    assert cache.read() is None
    cache.write(DATA)
    assert cache.read() == DATA
    publish(store, toy_spec(), FILES)
    assert cache.read() is None, "an engine that is built again begins anew"
    cache.write(DATA)
    store.delete(plan.manifest.key)
    assert cache.read() is None
    cache.write(DATA)
    assert not plan.folder.exists(), "nothing is written where no engine is"


def of_another(cache: SealedCache, store: EngineStore) -> None:
    other = publish(store, toy_spec(component="other"), FILES).side(NAME)
    assert other is not None
    other.write(DATA)
    shutil.copyfile(other.path, cache.path)


DAMAGE: dict[str, Callable[[SealedCache, EngineStore], object]] = {
    "of-another-engine": of_another,
    "empty": lambda cache, store: cache.path.write_bytes(b""),
    "seal-alone": lambda cache, store: os.truncate(cache.path, 32),
    "no-seal": lambda cache, store: cache.path.write_bytes(DATA),
    "longer": lambda cache, store: cache.path.write_bytes(cache.path.read_bytes() + b"x"),
    "link": lambda cache, store: move_and_link(cache.path),
    "pipe": lambda cache, store: replace_by(os.mkfifo)(cache.path),
    "folder": lambda cache, store: replace_by(Path.mkdir)(cache.path),
}


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_doubtful_one_is_not_read(store: EngineStore, cache: SealedCache, kind: str) -> None:
    DAMAGE[kind](cache, store)
    assert cache.read() is None


def test_no_flipped_bit_is_read(cache: SealedCache) -> None:
    whole, draw = cache.path.read_bytes(), random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        cache.path.write_bytes(data)
        assert cache.read() is None


def test_one_under_another_name_is_not_read(plan: Plan, cache: SealedCache) -> None:
    other = plan.side("other.cache")
    assert other is not None
    cache.path.rename(other.path)
    assert other.read() is None


def test_one_that_is_too_large_is_neither_read_nor_written(cache: SealedCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_cache, "MAX_BYTES", 100)
    assert cache.read() is None
    before = cache.path.read_bytes()
    cache.write(DATA)
    assert cache.path.read_bytes() == before


def test_a_disk_that_refuses_is_a_line_in_the_log(
    store: EngineStore, plan: Plan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = plan.side(NAME)
    assert cache is not None
    monkeypatch.setattr(Path, "replace", fail(errno.ENOSPC))
    with caplog.at_level(logging.INFO):
        cache.write(DATA)
    assert os.strerror(errno.ENOSPC) in caplog.text
    assert cache.read() is None
    assert names(store.root / ".staging") == []
