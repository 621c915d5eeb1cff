"""What a child process inherits of the host's environment."""

import getpass
import json
from pathlib import Path

import pytest

from i2v_tensorrt.common.child_process import ALLOCATORS, PATIENT, USER, child_environment
from i2v_tensorrt.engine_builder.build.build_process import _Child


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize(
    ("given", "left"),
    [
        ("backend:cudaMallocAsync", None),
        ("max_split_size_mb:128,backend:cudaMallocAsync", "max_split_size_mb:128"),
        ("expandable_segments:True", "expandable_segments:True"),
        ("", None),
    ],
)
def test_the_hosts_allocator_stays_the_hosts(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str, left: str | None
) -> None:
    monkeypatch.setenv(name, given)
    assert child_environment({"MORE": "1"}).get(name) == left
    assert child_environment({"MORE": "1"})["MORE"] == "1"


def test_a_build_process_has_it_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:cudaMallocAsync")
    child = _Child()
    try:
        variables = Path(f"/proc/{child._process.pid}/environ")
        if not variables.exists():
            pytest.skip("This system does not show the environment of a process.")
        assert b"cudaMallocAsync" not in variables.read_bytes(), json.dumps(child_environment())
    finally:
        child.end()


def test_a_user_without_an_account_has_a_number_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.8 to 2.12 ask for the user's name as they are imported to compile, and fail."""

    def unknown() -> str:
        raise KeyError("getpwuid(): uid not found: 4242")

    monkeypatch.delenv(USER, raising=False)
    monkeypatch.setattr(getpass, "getuser", lambda: "somebody")
    assert USER not in child_environment()
    monkeypatch.setattr(getpass, "getuser", unknown)
    assert child_environment()[USER].startswith("uid_")
    monkeypatch.setenv(USER, "a name of its own")
    assert child_environment()[USER] == "a name of its own"


def test_a_childs_threads_sleep_while_they_wait_unless_the_user_has_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spinning ones keep the processor from the host and from each other."""
    (name,) = PATIENT
    monkeypatch.delenv(name, raising=False)
    assert child_environment()[name] == "PASSIVE"
    monkeypatch.setenv(name, "ACTIVE")
    assert child_environment()[name] == "ACTIVE"
    assert child_environment(PATIENT)[name] == "PASSIVE"
