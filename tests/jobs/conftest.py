"""Sets of engines over toys, for the tests of policies and of prebuilding."""

from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.store import EngineStore
from i2v_tensorrt.jobs import catalog as catalog_module
from i2v_tensorrt.jobs import engines as engines_module
from i2v_tensorrt.jobs import idle_builds, parallel, prebuild
from i2v_tensorrt.jobs.engines import EngineSet
from i2v_tensorrt.jobs.failed_builds import FailedBuilds
from i2v_tensorrt.jobs.policy import EnginePolicy

from ..engine_builder.toys import CPU, InProcess, ToyBackend
from .toy_model import MakeSet, ToyModel


@pytest.fixture(autouse=True)
def _no_failed_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed in one test is new to the next one."""
    failed = FailedBuilds()
    for module in (engines_module, idle_builds):
        monkeypatch.setattr(module, "FAILED", failed)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyBackend:
    """The toy as the one backend beside eager, compiling in this process."""
    backend = ToyBackend()
    monkeypatch.setattr(registry, "BACKENDS", {"toy": backend, "eager": registry.BACKENDS["eager"]})
    monkeypatch.setattr(engines_module, "BACKENDS", registry.BACKENDS)
    monkeypatch.setattr(catalog_module, "BACKENDS", registry.BACKENDS)
    for module in (engines_module, parallel, prebuild):
        monkeypatch.setattr(module, "BuildProcess", InProcess)
    return backend


@pytest.fixture
def make(toy: ToyBackend, tmp_path: Path) -> MakeSet:
    """Makes an EngineSet over one store and, unless given another, a model of its own."""

    def make_set(model: Any = None, **policy: Any) -> EngineSet:
        return EngineSet(model or ToyModel(), EngineStore(tmp_path / "engines"), EnginePolicy(**policy), CPU)

    return make_set
