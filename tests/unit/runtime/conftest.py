"""Sets of engines over toys, for the tests of policies and of prebuilding."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.runtime import prebuild
from i2v_tensorrt.runtime.engines import builds as engine_builds
from i2v_tensorrt.runtime.engines import catalog, idle_builds, missing, parallel_builds, runners
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.failed_builds import FailedBuilds
from i2v_tensorrt.runtime.engines.idle_builds import IdleBuilds
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toy_host import Idle, ToyHost
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
    """Makes an EngineSet over one store and, unless given another, a model of its own; keywords are a policy's."""

    def make_set(model: Any = None, memory_manager: Any = None, **policy: Any) -> EngineSet:
        store = EngineStore(tmp_path / "engines")
        return EngineSet(model or ToyModel(), store, EnginePolicy(**policy), CPU, memory_manager)

    return make_set


@pytest.fixture
def idle(toy: ToyBackend, tmp_path: Path) -> Iterator[Idle]:
    """Over the store of `make`."""
    host = ToyHost()
    yield Idle(host, IdleBuilds(host, CALM_S), toy, tmp_path / "engines")
    host.idle = False  # whatever is still being built ends


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Component and first axis of its first input, for every call of a network in eager PyTorch."""
    seen: list[tuple[str, int]] = []
    run = EagerRunner._run

    def watched(self: EagerRunner, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append((self.spec.network.component, len(next(iter(inputs.values())))))
        return run(self, inputs)

    monkeypatch.setattr(EagerRunner, "_run", watched)
    return seen
