"""Thousands of damaged and forged engines: none of their bytes comes to where plans are deserialised."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeRunner
from i2v_tensorrt.engine_builder.backends.tensorrt import runner as tensorrt_runner
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, Library
from i2v_tensorrt.engine_builder.graph.onnx_export import FILE_NAME as GRAPH
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ..helpers.counts import Evidence, counted
from ..helpers.mutations import MUTATIONS
from ..helpers.toys import CPU, ToyNetwork, publish, toy_spec

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")

GROWTH_LIMIT_BYTES = 200 << 20
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of a random name is made in it
Deserialised = list[bytes]


@pytest.fixture
def memory_store(tmp_path: Path) -> Iterator[EngineStore]:
    """A store in memory where the system has such a place, for the sake of the disk."""
    parent = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else tmp_path
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        yield EngineStore(Path(folder) / "engines")


class NoStream:
    """Stands in for a CUDA stream where there is none."""

    def __init__(self, device: object) -> None:
        pass

    @contextmanager
    def active(self) -> Iterator[None]:
        yield


@pytest.fixture
def deserialised(monkeypatch: pytest.MonkeyPatch) -> Deserialised:
    """All bytes that a runtime was given; each runtime then says that it cannot take them."""
    import onnxruntime

    handed: Deserialised = []

    def take_graph(path: str, *_: object, **__: object) -> None:
        handed.append(Path(path).read_bytes() + Path(f"{path}.data").read_bytes())
        raise ValueError("no more than this")

    monkeypatch.setattr(onnxruntime, "InferenceSession", take_graph)
    monkeypatch.setattr(tensorrt_runner, "OwnStream", NoStream)
    monkeypatch.setattr(tensorrt_runner, "make_logger", lambda library: SimpleNamespace(last_error="no more than this"))
    return handed


def load(plan: Plan, handed: Deserialised) -> None:
    """Loads a plan with the runner that its files are for."""
    runtime = SimpleNamespace(deserialize_cuda_engine=handed.append)
    tensorrt = Library(SimpleNamespace(Runtime=lambda logger: runtime), True)
    runner: Any = (
        tensorrt_runner.TensorRTRunner(plan, plan.manifest.spec, ToyNetwork, CPU, tensorrt)
        if PLAN in plan.manifest.files
        else OnnxRuntimeRunner(plan, plan.manifest.spec, ToyNetwork, CPU)
    )
    with pytest.raises(EngineError):
        runner.load()


class Engine:
    """An engine in the store, another one of the same files beside it, and a copy of it elsewhere."""

    def __init__(self, store: EngineStore, names: tuple[str, ...], copies: Path) -> None:
        draw = random.Random(len(names))
        contents = [{name: draw.randbytes(3000) for name in names} for _ in range(2)]
        self.bytes = b"".join(contents[0].values())
        self.folder, self.other = (
            publish(store, toy_spec(component=f"{names[0]} {number}"), files).folder
            for number, files in enumerate(contents)
        )
        self._copy = copies / self.folder.name
        shutil.copytree(self.folder, self._copy)

    def put_back(self) -> None:
        """Undoes whatever became of the folder."""
        remove(self.folder)
        shutil.copytree(self._copy, self.folder)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def clean(store: EngineStore, kept: set[Path]) -> None:
    """Removes what mutations and quarantine leave beside the engines."""
    for path in set(store.root.iterdir()) - kept - {store.root / ".secret"}:
        remove(path)


def resident_bytes() -> int:
    import psutil

    return psutil.Process().memory_info().rss


@counted(330, 10_000)
def test_no_damaged_engine_is_deserialised(
    memory_store: EngineStore, deserialised: Deserialised, count: int, evidence: Evidence, tmp_path: Path
) -> None:
    engines = [Engine(memory_store, names, tmp_path) for names in ((PLAN,), (GRAPH, f"{GRAPH}.data"))]
    kept = {path for each in engines for path in (each.folder, each.other)}
    before = resident_bytes()
    for number in range(count):
        mutate, engine = MUTATIONS[number % len(MUTATIONS)], engines[number // len(MUTATIONS) % len(engines)]
        mutate(engine.folder, engine.other, random.Random(number))
        for plan in memory_store.plans():
            if plan.folder not in kept - {engine.folder}:
                load(plan, deserialised)
        assert deserialised == [], f"{mutate.__name__}, number {number}"
        clean(memory_store, kept)
        engine.put_back()
        if number % 100 == 0:
            load(next(plan for plan in memory_store.plans() if plan.folder == engine.folder), deserialised)
            assert deserialised.pop() == engine.bytes, "a whole engine is loaded"
    growth = resident_bytes() - before
    assert growth < GROWTH_LIMIT_BYTES
    kinds = f"{len(MUTATIONS)} kinds, none deserialised; memory grew by {growth >> 20} MiB"
    evidence("damaged and forged engines", count, kinds)
