"""Sets of engines over toys, for the tests of policies and of prebuilding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.runtime import prebuild
from i2v_tensorrt.runtime.engines import builds as engine_builds
from i2v_tensorrt.runtime.engines import catalog, idle_builds, missing, parallel_builds, runners
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.failed_builds import FailedBuilds
from i2v_tensorrt.runtime.engines.idle_builds import IdleBuilds
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toy_host import AsOnAGpu, ToyHost
from ...helpers.toy_model import MakeSet, ToyModel
from ...helpers.toys import CPU, InProcess, ToyBackend

CALM_S = 0.05


@pytest.fixture(autouse=True)
def _no_failed_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed in one test is new to the next one."""
    failed = FailedBuilds()
    for module in (engine_builds, idle_builds):
        monkeypatch.setattr(module, "FAILED", failed)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyBackend:
    """The toy as the one backend beside eager, compiling in this process."""
    backend = ToyBackend()
    monkeypatch.setattr(registry, "BACKENDS", {"toy": backend, "eager": registry.BACKENDS["eager"]})
    for module in (catalog, missing):
        monkeypatch.setattr(module, "BACKENDS", registry.BACKENDS)
    for module in (runners, parallel_builds, prebuild):
        monkeypatch.setattr(module, "BuildProcess", InProcess)
    return backend


@pytest.fixture
def make(toy: ToyBackend, tmp_path: Path) -> MakeSet:
    """Makes an EngineSet over one store and, unless given another, a model of its own."""

    def make_set(model: Any = None, **policy: Any) -> EngineSet:
        return EngineSet(model or ToyModel(), EngineStore(tmp_path / "engines"), EnginePolicy(**policy), CPU)

    return make_set


@pytest.fixture
def host() -> Iterator[ToyHost]:
    host = ToyHost()
    yield host
    host.idle = False  # whatever is still being built ends


@pytest.fixture
def builds(host: ToyHost) -> IdleBuilds:
    return IdleBuilds(host, CALM_S)


@pytest.fixture
def later(toy: ToyBackend, tmp_path: Path, builds: IdleBuilds) -> MakeSet:
    """Makes an EngineSet as `auto` has it on a GPU; its keywords are a policy's, and `memory_manager`."""

    def make_set(memory_manager: LoadInPlace | None = None, **policy: Any) -> EngineSet:
        wanted = AsOnAGpu(**{"on_missing": "auto", "precision": "fp32", **policy})
        store = EngineStore(tmp_path / "engines")
        return EngineSet(ToyModel(), store, wanted, CPU, memory_manager, later=builds)  # pyright: ignore[reportArgumentType]

    return make_set
