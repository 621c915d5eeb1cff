"""A store that may only be read, one without locks, clocks that jump, and versions of the pack that come and go."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.store import key as key_module
from i2v_tensorrt.engine_builder.store import manifest
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ..helpers.faults import DISK, Call, Faults, run_child
from ..helpers.toys import FILES, InProcess, contents, names, publish, quarantined, toy_spec
from ..helpers.victims import toy_request

DAY_S = 24 * 3600


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
            build_engine(toy_request(lambda folder: None, "1.0"), store, InProcess())
    assert quarantined(store) == []


def no_log(root: Path, faults: Faults) -> None:
    """A build whose log cannot be written."""
    request = toy_request(lambda folder: None, "1.0")
    store = EngineStore(root)
    with store.staging() as folder, BuildProcess() as process:
        for after in (1, 2):
            with (
                faults.armed(Call.MKDIR | Call.OPEN, errno.ENOSPC, after, stays=True, root=root),
                pytest.raises(StorageError, match="No space left"),
            ):
                process.compile(request, folder, store.log_path("a" * 64), lambda stage, done: None)


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
            assert not build_engine(toy_request(lambda folder: None, "1.0"), store, InProcess()).reused
        except StorageError as error:
            assert "cannot be locked" in str(error)


def ahead(root: Path, faults: Faults) -> None:
    """A clock that is set right in the middle of a build, years ahead, does not sweep that build away."""
    store = EngineStore(root)
    other = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = root / ".staging" / f"{int(other.stdout)}-0123456789abcdef"
    with store.staging() as building:
        (building / "half.bin").write_bytes(b"half")
        dead.mkdir()
        with faults.clock(365 * DAY_S):
            assert time.time() > os.stat(building).st_mtime + 300 * DAY_S
            assert store.sweep() == 1
        assert contents(building) == {"half.bin": b"half"}
        assert not dead.exists()


def back(root: Path, faults: Faults) -> None:
    """What a dead build left while the clock was years ahead is swept, and engines made then are found."""
    store = EngineStore(root)
    plan = publish(store, toy_spec(), FILES)
    other = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = root / ".staging" / f"{int(other.stdout)}-0123456789abcdef"
    dead.mkdir(parents=True)
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


def of_schema(monkeypatch: pytest.MonkeyPatch, schema: int) -> None:
    """Stands for another version of the pack."""
    monkeypatch.setattr(key_module, "SCHEMA", schema)
    monkeypatch.setattr(manifest, "SCHEMA", schema)


@pytest.mark.parametrize("schema", [0, 2])
def test_engines_of_another_version_wait_for_its_return(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, schema: int
) -> None:
    """After an upgrade or a downgrade, and a way back: neither version throws the other's engines away."""
    with monkeypatch.context() as patch:
        of_schema(patch, schema)
        theirs = publish(store, toy_spec(), FILES)
        assert list(store.plans()) == [theirs]
    ours = publish(store, toy_spec(), {"network.bin": b"ours"})
    assert ours.folder != theirs.folder
    assert list(store.plans()) == [ours]
    assert store.find(theirs.folder.name) is None
    assert quarantined(store) == []
    with monkeypatch.context() as patch:
        of_schema(patch, schema)
        assert list(store.plans()) == [theirs]
    assert list(store.plans()) == [ours]
