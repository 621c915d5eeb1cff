"""What the full TensorRT measured of layers: lent to later builds for the same target, kept sealed, never required."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock, create_autospec

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.backends.tensorrt.library import (
    FULL,
    RTX,
    Library,
    borrow_timing_cache,
    load_library,
    timing_bytes,
)
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.store.sealed_cache import TIMING_CACHE
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import CPU, InProcess, ToyBackend, names, toy_request


class Measuring(ToyBackend):
    """A library that adds a line for each build to what it is lent."""

    def __init__(self) -> None:
        super().__init__()
        self.borrowed: list[bytes | None] = []
        self.while_building = self._measure
        self.fails = False

    def _measure(self, folder: Path) -> None:
        file = folder / TIMING_CACHE
        kept = file.read_bytes() if file.is_file() else None
        self.borrowed.append(kept)
        file.write_bytes((kept or b"") + b"layer\n")
        if self.fails:
            raise EngineError("The toy broke.")


@pytest.fixture
def backend() -> Measuring:
    return Measuring()


def build(store: EngineStore, backend: Measuring) -> None:
    plan = build_engine(toy_request(backend), store, InProcess(), force=True).plan
    assert TIMING_CACHE not in plan.manifest.files
    assert TIMING_CACHE not in names(plan.folder)


def test_each_build_has_what_those_before_measured_for_its_target(store: EngineStore, backend: Measuring) -> None:
    for each in (store, store, EngineStore(store.root)):
        build(each, backend)
    assert backend.borrowed == [None, b"layer\n", b"layer\nlayer\n"]
    target = backend.target(CPU)
    assert store.timing_cache(target).read() is not None
    assert store.timing_cache(replace(target, backend_version="2")).read() is None


def test_what_was_changed_is_not_lent(store: EngineStore, backend: Measuring) -> None:
    build(store, backend)
    path = store.timing_cache(backend.target(CPU)).path
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    build(store, backend)
    assert backend.borrowed == [None, None]


def test_a_build_that_fails_adds_nothing(store: EngineStore, backend: Measuring) -> None:
    build(store, backend)
    backend.fails = True
    with pytest.raises(EngineError):
        build(store, backend)
    backend.fails = False
    build(store, backend)
    assert backend.borrowed[-1] == b"layer\n"


# The library's calls. The full library cannot be imported here: that its bindings have these names is looked up in
# test_tensorrt_names.py.


def full(**answers: object) -> tuple[Library, Mock]:
    config = Mock(spec=["create_timing_cache", "set_timing_cache", "get_timing_cache"], **answers)
    return Library(Mock(name=FULL), is_rtx=False), config


def test_what_was_kept_is_taken() -> None:
    library, config = full()
    borrow_timing_cache(library, config, b"kept")
    config.create_timing_cache.assert_called_once_with(b"kept")
    config.set_timing_cache.assert_called_once_with(config.create_timing_cache.return_value, False)


@pytest.mark.parametrize("refusal", ["create", "set"])
def test_what_does_not_fit_this_gpu_is_begun_anew(refusal: str) -> None:
    library, config = full()
    fresh = Mock()
    config.create_timing_cache.side_effect = [None if refusal == "create" else Mock(), fresh]
    config.set_timing_cache.side_effect = [True] if refusal == "create" else [False, True]
    borrow_timing_cache(library, config, b"of another GPU")
    assert config.create_timing_cache.call_args.args == (b"",)
    assert config.set_timing_cache.call_args.args == (fresh, False)


@pytest.mark.parametrize(("serialized", "found"), [(b"measured", b"measured"), (b"", None), (None, None)])
def test_what_was_measured_comes_as_bytes(serialized: bytes | None, found: bytes | None) -> None:
    library, config = full()
    config.get_timing_cache.return_value.serialize.return_value = serialized
    assert timing_bytes(library, config) == found
    config.get_timing_cache.return_value = None
    assert timing_bytes(library, config) is None


def test_rtx_is_asked_for_nothing() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    library, config = load_library(RTX), create_autospec(rtx.IBuilderConfig, instance=True)
    borrow_timing_cache(library, config, b"kept")
    assert timing_bytes(library, config) is None
    assert config.mock_calls == []
