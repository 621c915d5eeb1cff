"""The doctor over backends that are there, missing, or taken by name alone."""

import sys

import pytest
import torch

from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.base import Availability
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.runtime.tools import doctor
from i2v_tensorrt.runtime.tools.doctor import diagnose, installed_versions

CPU = torch.device("cpu")


class Stub(EagerBackend):
    """A backend in whatever state a test asks for."""

    def __init__(self, name: str, state: Availability, automatic: bool = True) -> None:
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]
        self._state, self._automatic = state, automatic

    def availability(self, device: torch.device) -> Availability:
        return self._state

    def is_automatic(self, device: torch.device) -> bool:
        return self._automatic


OK = Availability(True, "It is there.")
GONE = Availability(False, "It needs the package fast, which is missing.", "pip install fast")
COMPILER = Availability(False, "It needs a compiler.", "apt install g++")
NEVER = Availability(False, "There is no GPU.")


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201 - a function that tests call
    def put_backends(*backends: EagerBackend) -> None:
        found = {backend.name: backend for backend in (*backends, EagerBackend())}
        monkeypatch.setattr(registry, "BACKENDS", found)
        monkeypatch.setattr(doctor, "BACKENDS", found)

    return put_backends


def test_here_it_says_what_auto_takes_and_of_every_backend_why() -> None:
    found = diagnose(CPU)
    (chosen,) = [state.name for state in found.backends if state.chosen]
    assert chosen == registry.choose_backend("auto", CPU).name
    assert [state.name for state in found.backends] == list(registry.BACKENDS)
    assert all(state.reason.endswith(".") for state in found.backends)
    assert dict(found.versions)["torch"] == installed_versions(("torch",))[0][1]
    assert f"can run: {chosen}" in found.why
    assert "fp32" in found.abilities


def test_a_faster_backend_that_is_missing_has_the_line_for_this_python(put) -> None:
    put(Stub("never", NEVER), Stub("fast", GONE), Stub("slow", OK))
    found = diagnose(CPU)
    assert found.install == f'"{sys.executable}" -m pip install fast'
    assert found.line == "auto takes slow; a faster one can be installed"
    assert [state.verdict for state in found.backends] == ["cannot run", "cannot run", "auto takes this", "can run"]
    assert found.why.endswith("first that can run: slow; never cannot run, fast cannot run")
    assert ("to install", "", found.install) in found.table.rows
    put(Stub("compiling", COMPILER))
    assert diagnose(CPU).install == "apt install g++", "a line of another installer stays as it is"


def test_what_would_come_after_the_chosen_one_is_not_urged(put) -> None:
    put(Stub("careful", OK, automatic=False), Stub("fast", OK), Stub("slow", GONE))
    found = diagnose(CPU)
    assert (found.install, found.line) == ("", "auto takes fast")
    assert ("to install", "", "nothing: none is faster here") in found.table.rows
    assert found.backends[0].verdict == "can run, by its name alone"
    assert "careful is taken by its name alone here" in found.why


def test_a_package_that_is_not_there_has_no_version() -> None:
    assert [name for name, _ in installed_versions(("torch", "no-such-package-at-all"))] == ["torch"]
