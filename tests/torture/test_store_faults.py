"""A store that may only be read, one without locks, clocks that jump, and versions of the pack that come and go."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.store import key as key_module
from i2v_tensorrt.engine_builder.store import manifest
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME, ParityReport
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ..helpers.counts import Evidence, counted
from ..helpers.faults import DISK, Call, Faults, run_child
from ..helpers.toys import FILES, InProcess, contents, names, publish, quarantined, toy_spec
from ..helpers.victims import toy_request

DAY_S = 24 * 3600
REQUEST = toy_request(lambda folder: None, "1.0")
ROOT = Path(__file__).resolve().parents[2]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
Act = Callable[[EngineStore], object]


def two(root: Path) -> tuple[EngineStore, Plan, Plan]:
    """A store with a damaged engine and a whole one."""
    store = EngineStore(root)
    damaged, whole = publish(store, toy_spec(component="damaged"), FILES), publish(store, toy_spec(), FILES)
    (damaged.folder / FILE_NAME).write_text("{}")
    return store, damaged, whole


def read_only(root: Path, faults: Faults) -> None:
    """A damaged engine that cannot be put aside is not trusted, and does not keep others from being used."""
    store, damaged, whole = two(root)
    with faults.armed(DISK | Call.UNLINK, errno.EROFS, 1, stays=True, root=root):
        assert store.find(damaged.manifest.key) is None
        assert list(store.plans()) == [whole]
        whole.verify()
        assert store.sweep(time.time() + 2 * DAY_S) == 0
        side = whole.side("kernels.cache")
        assert side is not None
        side.write(b"kernels")
        assert side.read() is None
        with pytest.raises(StorageError, match="Read-only"):
            build_engine(REQUEST, store, InProcess())
    assert quarantined(store) == []


def no_log(root: Path, faults: Faults) -> None:
    """A build whose log cannot be written."""
    store = EngineStore(root)
    with store.staging() as folder, BuildProcess() as process:
        for after in (1, 2):
            with (
                faults.armed(Call.MKDIR | Call.OPEN, errno.ENOSPC, after, stays=True, root=root),
                pytest.raises(StorageError, match="No space left"),
            ):
                process.compile(REQUEST, folder, store.log_path("a" * 64), lambda stage, done: None)


def no_locks(root: Path, faults: Faults) -> None:
    """A file system that gives no locks: told in a sentence."""
    store = EngineStore(root)
    for number in (errno.ENOLCK, errno.EOPNOTSUPP):
        with (
            faults.armed(Call.LOCK, number, 1, stays=True, root=root),
            pytest.raises(StorageError, match="cannot be locked"),
            store.lock("a" * 64),
        ):
            pass


def soft_locks(root: Path, faults: Faults) -> None:
    """A file system that does not know locks: served by what filelock has in their place, or told in a sentence."""
    store = EngineStore(root)
    with faults.armed(Call.LOCK, errno.ENOSYS, 1, stays=True, root=root):
        try:
            assert not build_engine(REQUEST, store, InProcess()).reused
        except StorageError as error:
            assert "cannot be locked" in str(error)


def left_by_the_dead(root: Path) -> Path:
    """What a process that has ended was building."""
    other = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = root / ".staging" / f"{int(other.stdout)}-0123456789abcdef"
    dead.mkdir(parents=True)
    return dead


def ahead(root: Path, faults: Faults) -> None:
    """A clock that is set right in the middle of a build, years ahead, does not sweep that build away."""
    store = EngineStore(root)
    dead = left_by_the_dead(root)
    with store.staging() as building:
        (building / "half.bin").write_bytes(b"half")
        with faults.clock(365 * DAY_S):
            assert time.time() > os.stat(building).st_mtime + 300 * DAY_S
            assert store.sweep() == 1
        assert contents(building) == {"half.bin": b"half"}
        assert not dead.exists()


def back(root: Path, faults: Faults) -> None:
    """What a dead build left while the clock was years ahead is swept, and engines made then are found."""
    store = EngineStore(root)
    plan = publish(store, toy_spec(), FILES)
    dead = left_by_the_dead(root)
    then = time.time() + 365 * DAY_S
    for path in (dead, plan.folder, plan.folder / FILE_NAME):
        os.utime(path, (then, then))
    assert store.sweep() == 1
    assert names(root / ".staging") == []
    assert list(store.plans()) == [plan]


def run_all(root: str) -> None:
    """In the child."""
    for number, part in enumerate(PARTS):
        part(Path(root) / str(number), Faults())


PARTS = (read_only, no_log, no_locks, soft_locks, ahead, back)


def test_faults_of_the_system(shim: Path, tmp_path: Path) -> None:
    run_child(shim, __name__, "run_all", tmp_path)


@contextmanager
def another_version(monkeypatch: pytest.MonkeyPatch, schema: int) -> Iterator[None]:
    """Stands for a process of another version of the pack, and after it for one of this version: neither has read a
    manifest yet."""
    with monkeypatch.context() as patch:
        patch.setattr(key_module, "SCHEMA", schema)
        patch.setattr(manifest, "SCHEMA", schema)
        manifest.unseal.cache_clear()
        yield
    manifest.unseal.cache_clear()


@pytest.mark.parametrize("schema", [0, 2])
def test_engines_of_another_version_wait_for_its_return(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, schema: int
) -> None:
    """After an upgrade or a downgrade, and a way back: neither version throws the other's engines away."""
    with another_version(monkeypatch, schema):
        theirs = publish(store, toy_spec(), FILES)
        assert list(store.plans()) == [theirs]
    ours = publish(store, toy_spec(), {"network.bin": b"ours"})
    assert ours.folder != theirs.folder
    assert list(store.plans()) == [ours]
    assert store.find(theirs.folder.name) is None
    assert quarantined(store) == []
    with another_version(monkeypatch, schema):
        assert list(store.plans()) == [theirs]
    assert list(store.plans()) == [ours]


# Every system call fails once, and from then on: a clear error, nothing torn, nothing lost.


def publish_again(store: EngineStore) -> None:
    publish(store, toy_spec(), {"network.bin": random.randbytes(100_000), "data/more.bin": b"newer"})


def judge(store: EngineStore) -> None:
    plan = publish(store, toy_spec(precision="bf16"), FILES)
    store.set_verdict(plan, ParityReport(0.9999, 45.0, 1e-3, True, ({"batch": 2},)))


def delete(store: EngineStore) -> None:
    plan = publish(store, toy_spec(component="deleted"), FILES)
    assert store.delete(plan.manifest.key)


def put_aside(store: EngineStore) -> None:
    plan = publish(store, toy_spec(component="damaged"), FILES)
    (plan.folder / "manifest.json").write_text("{}")
    assert store.find(plan.manifest.key) is None


def sealed_cache(store: EngineStore) -> None:
    cache = publish(store, toy_spec(component="cached"), FILES).side("kernels.cache")
    assert cache is not None
    cache.write(b"kernels" * 1000)
    cache.read()


ACTS: tuple[Act, ...] = (
    publish_again,
    lambda store: publish(store, toy_spec(precision="fp16"), FILES),
    judge,
    lambda store: build_engine(REQUEST, store, InProcess(), force=True),
    delete,
    put_aside,
    lambda store: publish(EngineStore(store.root / "fresh"), toy_spec(), FILES),  # with a secret of its own
    sealed_cache,
)


def remake(root: Path) -> EngineStore:
    """A store with an engine to be replaced and one to be left alone."""
    shutil.rmtree(root, ignore_errors=True)
    store = EngineStore(root)
    publish(store, toy_spec(), FILES)
    publish(store, toy_spec(component="vae"), FILES)
    return store


def assert_whole(store: EngineStore, before: set[str]) -> None:
    """All that was there still is, whole, perhaps after the sweep that every build begins with."""
    store.sweep(time.time() + 2 * DAY_S)
    plans = {plan.manifest.key: plan for plan in store.plans()}
    assert before <= set(plans)
    for plan in plans.values():
        plan.verify()
    assert [path for path in contents(store.root / ".staging")] == []


def is_a_backends(error: OSError) -> bool:
    """Whether it comes from what the tests write themselves, as a backend does in a child."""
    ours = [
        frame.filename for frame in traceback.extract_tb(error.__traceback__) if f"{ROOT}{os.sep}" in frame.filename
    ]
    return Path(ours[-1]).name in ("toys.py", Path(__file__).name)


def torture(root: str, count: str) -> None:
    """In the child: `count` faults, one after another; prints what came of them."""
    faults, draw, came, missed = Faults(), random.Random(int(count)), Counter[str](), 0
    lengths = {}
    for act in ACTS:
        store = remake(Path(root))
        with faults.armed(DISK, 0, 0, root=store.root):
            act(store)
        lengths[act] = faults.calls
        assert faults.calls > 3, act
    while sum(came.values()) < int(count):
        act, number, stays = draw.choice(ACTS), draw.choice(ERRORS), draw.random() < 0.5
        store = remake(Path(root))
        before = {plan.manifest.key for plan in store.plans()}
        told = None
        with faults.armed(DISK, number, draw.randint(1, lengths[act]), stays=stays, root=store.root):
            try:
                act(store)
            except StorageError as error:
                told = str(error)
            except OSError as error:
                assert is_a_backends(error), "".join(traceback.format_exception(error))
                told = f"The backend's own: {error.strerror}."
        if faults.hits == 0:
            missed += 1
            continue
        came["refused" if told else "served all the same"] += 1
        if told:
            assert os.strerror(number) in told, told
            assert told.endswith(".") and "\n" not in told
        assert_whole(store, before)
        if act is not put_aside or told:
            act(store)
        assert_whole(store, before)
    print(json.dumps({"came": came, "calls": sum(lengths.values()), "missed": missed}))  # noqa: T201 - for the parent


@counted(40, 2000)
def test_any_system_call_may_fail(shim: Path, tmp_path: Path, count: int, evidence: Evidence) -> None:
    found = json.loads(run_child(shim, __name__, "torture", tmp_path / "engines", count))
    assert sum(found["came"].values()) == count
    assert found["came"]["refused"] > count / 4
    told = ", ".join(f"{number} {what}" for what, number in found["came"].items())
    evidence("ENOSPC, EIO, EROFS, EDQUOT in the store", count, f"{told}; nothing torn, nothing lost")
