"""Every system call of the store fails once, and from then on: a clear error, nothing torn, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.store.manifest import ParityReport
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ..helpers.counts import Evidence, counted
from ..helpers.faults import DISK, Faults, run_child
from ..helpers.toys import FILES, InProcess, contents, publish, toy_spec
from ..helpers.victims import toy_request

HERE = __name__
ROOT = Path(__file__).resolve().parents[2]
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT)
DAY_S = 24 * 3600
Act = Callable[[EngineStore], object]


def publish_again(store: EngineStore) -> None:
    publish(store, toy_spec(), {"network.bin": random.randbytes(100_000), "data/more.bin": b"newer"})


def publish_first(store: EngineStore) -> None:
    publish(store, toy_spec(precision="fp16"), FILES)


def judge(store: EngineStore) -> None:
    plan = publish(store, toy_spec(precision="bf16"), FILES)
    store.set_verdict(plan, ParityReport(0.9999, 45.0, 1e-3, True, ({"batch": 2},)))


def build(store: EngineStore) -> None:
    build_engine(toy_request(lambda folder: None, "1.0"), store, InProcess(), force=True)


def delete(store: EngineStore) -> None:
    plan = publish(store, toy_spec(component="deleted"), FILES)
    assert store.delete(plan.manifest.key)


def put_aside(store: EngineStore) -> None:
    plan = publish(store, toy_spec(component="damaged"), FILES)
    (plan.folder / "manifest.json").write_text("{}")
    assert store.find(plan.manifest.key) is None


def first_use(store: EngineStore) -> None:
    """Of a store that is not there yet, with its secret."""
    fresh = EngineStore(store.root / "fresh")
    publish(fresh, toy_spec(), FILES)


def sealed_cache(store: EngineStore) -> None:
    cache = publish(store, toy_spec(component="cached"), FILES).side("kernels.cache")
    assert cache is not None
    cache.write(b"kernels" * 1000)
    cache.read()


ACTS: tuple[Act, ...] = (publish_again, publish_first, judge, build, delete, put_aside, first_use, sealed_cache)


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
    found = json.loads(run_child(shim, HERE, "torture", tmp_path / "engines", count))
    assert sum(found["came"].values()) == count
    assert found["came"]["refused"] > count / 4
    told = ", ".join(f"{number} {what}" for what, number in found["came"].items())
    evidence("ENOSPC, EIO, EROFS, EDQUOT in the store", count, f"{told}; nothing torn, nothing lost")
