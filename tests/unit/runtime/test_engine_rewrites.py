"""Which rewrites an engine is built with, and that it is looked up and judged accordingly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.base import OUTSIDE
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.runtime.engines import builds
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ...helpers.toy_model import CHUNKED, SIZES, MakeSet, ToyModel, run
from ...helpers.toys import InProcess, ToyBackend, toy_network


@dataclass
class RewritingToy(ToyBackend):
    """A toy whose engines name no weights, and gain from a rewrite."""

    name: ClassVar[str] = "rewriting toy"
    weights: ClassVar[tuple[str, ...]] = (OUTSIDE,)


@pytest.fixture
def rewriting(toy: ToyBackend, monkeypatch: pytest.MonkeyPatch) -> RewritingToy:
    backend = RewritingToy()
    monkeypatch.setitem(registry.BACKENDS, backend.name, backend)
    return backend


def rewrites_of(engines: EngineSet) -> list[tuple[str, ...]]:
    return sorted(plan.manifest.spec.rewrites for plan in engines.store.plans())


@pytest.mark.parametrize(
    ("backend", "policy", "expected"),
    [
        ("toy", None, ()),
        ("toy", ("halved", "doubled"), ("doubled", "halved")),
        ("rewriting toy", None, ("doubled",)),
        ("rewriting toy", (), ()),
        ("rewriting toy", ("halved",), ("halved",)),
    ],
)
def test_the_policy_names_the_rewrites_or_leaves_them_to_the_model(
    make: MakeSet, rewriting: RewritingToy, backend: str, policy: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    model = ToyModel()
    engines = make(model, backend=backend, rewrites=policy)
    engines.build("core", SIZES, InProcess())
    assert rewrites_of(engines) == [expected]
    plain = [("core", ())] if expected else []
    assert model.sources == [("core", expected), *plain], "what it is compiled from, and what it is compared with"
    assert len(engines.catalog.stored("core")) == 1


def test_a_component_gets_the_rewrites_that_it_knows_and_takes_no_engine_of_others(
    make: MakeSet, rewriting: RewritingToy
) -> None:
    engines = make(backend="rewriting toy", rewrites=("halved", "doubled"))
    engines.build("vae_decoder", CHUNKED, InProcess())
    assert rewrites_of(engines) == [("doubled",)]
    make(backend="rewriting toy", rewrites=("halved",)).build("core", SIZES, InProcess())
    other = make(backend="rewriting toy")
    assert other.catalog.stored("core") == []
    other.build("core", SIZES, InProcess())
    assert rewrites_of(other) == [("doubled",), ("doubled",), ("halved",)]


@pytest.mark.parametrize("names", [("faster",), ("doubled", "faster")])
def test_an_unknown_rewrite_is_named_with_the_known_ones(make: MakeSet, names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="^The rewrites are doubled, halved, found faster.$"):
        make(rewrites=names)


def test_one_engine_without_weights_serves_every_fine_tune(make: MakeSet, rewriting: RewritingToy) -> None:
    sets = []
    for digit in "12":
        model = ToyModel()
        denoiser = model.components["core"]
        model.components["core"] = type(denoiser)(toy_network(weights_sha256=digit * 64), denoiser.load)
        sets.append(make(model, backend="rewriting toy"))
    first, second = sets
    built = first.build("core", SIZES, InProcess())
    assert built.plan.manifest.details == {"gated_with": "1" * 64, "made by": "toy"}
    assert run(second) == "toy"
    assert len(rewriting.builds_done) == 1


def test_the_request_compares_with_the_plain_network(
    make: MakeSet, rewriting: RewritingToy, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[BuildRequest] = []

    def note(request: BuildRequest, *_: object, **__: object) -> None:
        seen.append(request)

    monkeypatch.setattr(builds, "build_engine", note)
    for policy in (None, ()):
        make(backend="rewriting toy", rewrites=policy).build("core", SIZES, InProcess())
    assert [request.reference is None for request in seen] == [False, True]


def test_a_runners_warning_is_told_where_it_ran_for_as_long_as_it_holds(make: MakeSet) -> None:
    """A denoiser's does not stand under the decode."""
    engines, warning = make(), "core runs without a graph."
    run(engines)
    engines.runner("core", SIZES).warning = warning
    assert warning in engines.take_notes()
    run(engines, CHUNKED, "vae_decoder")
    assert warning not in engines.take_notes()
    run(engines, CHUNKED, "vae_decoder")
    run(engines)
    assert engines.take_notes() == [warning]
    engines.runner("core", SIZES).warning = None
    assert engines.take_notes() == []
