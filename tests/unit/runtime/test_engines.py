"""Which runner a component gets: found, built, eager or none, as the policy says, and told in sentences."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, InputError, MissingEngineError
from i2v_tensorrt.engine_builder.backends.base import Availability, Runner
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime.clip_sizes import clip_sizes
from i2v_tensorrt.runtime.engines import messages
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace
from i2v_tensorrt.runtime.engines.policy import LATER, MISS_POLICIES, EnginePolicy

from ...helpers.toy_model import CHUNKED, INSTALL, ODD, SIZES, MakeSet, ToyModel, keys, run
from ...helpers.toys import CPU, InProcess, ToyBackend

# Policies.


def test_what_is_missing_is_built_once_and_used_by_the_next_whatever_the_policy(make: MakeSet, toy: ToyBackend) -> None:
    first = make()
    assert [run(first), run(first)] == ["toy", "toy"]
    (note,) = first.take_notes()
    assert note.startswith("core engine built in ")
    for on_missing in ("build", "eager", "stop"):
        second = make(on_missing=on_missing)
        assert run(second) == "toy"
        assert second.take_notes() == []
    assert len(toy.builds_done) == 1


def test_a_range_engine_serves_every_size_that_the_network_takes(make: MakeSet, toy: ToyBackend) -> None:
    engines = make(shapes="range")
    for sizes in (SIZES, {**SIZES, "frames": 16, "latent_height": 32}, {**SIZES, "batch": 1, "frames": 1}):
        assert run(engines, sizes) == "toy"
    (spec,) = toy.builds_done
    assert spec.profile.optimum == SIZES
    assert {name: (limits.min, limits.max) for name, limits in spec.profile.ranges.items()} == {
        name: (limits.min, limits.max) for name, limits in spec.network.limits.ranges.items()
    }


def test_an_exact_engine_serves_its_size_and_another_is_built_for_the_next(make: MakeSet, toy: ToyBackend) -> None:
    engines = make(shapes="exact")
    other = {**SIZES, "frames": 5}
    assert [run(engines), run(engines, other), run(engines), run(engines, other)] == ["toy"] * 4
    assert [spec.profile.optimum for spec in toy.builds_done] == [SIZES, other]
    assert all(spec.profile.width == 1 for spec in toy.builds_done)


PRESETS = (ClipSize(48, 64, 4), ClipSize(128, 64, 4))
WIDE = {**SIZES, "latent_width": 16}


def test_one_engine_serves_its_presets_and_what_is_none_runs_eager_with_the_distance(
    make: MakeSet, toy: ToyBackend
) -> None:
    engines, between = make(shapes="presets", presets=PRESETS), {**SIZES, "latent_width": 12}
    engines.prepare(between)
    assert run(engines, between) == "eager"
    (note,) = engines.take_notes()
    assert "in the nearest, latent_width is 12, 4 below the smallest supported 16" in note
    assert toy.builds_done == []
    assert [run(engines, WIDE), run(engines, SIZES), run(engines, WIDE)] == ["toy"] * 3
    (spec,) = toy.builds_done
    assert [each.optimum for each in spec.profile.profiles] == [SIZES, WIDE]
    (plan,) = engines.catalog.stored("core")
    assert plan.manifest.verdict is not None
    assert plan.manifest.verdict.shapes == (SIZES, WIDE)
    assert run(make(shapes="presets", presets=PRESETS, on_missing="stop"), WIDE) == "toy"
    with pytest.raises(MissingEngineError, match="in the nearest, latent_width is 12, 4 below the smallest"):
        run(make(on_missing="stop"), between)


def test_an_exact_engine_goes_before_presets_and_presets_before_a_range(make: MakeSet) -> None:
    for policy in ({"shapes": "range"}, {"shapes": "presets", "presets": PRESETS}, {"shapes": "exact"}):
        make(**policy).build("core", SIZES, InProcess())
    engines = make()
    assert [len(plan.manifest.spec.profile.profiles) for plan in engines.catalog.stored("core")] == [1, 2, 1]
    assert engines.runner("core", SIZES).spec.profile.width == 1
    assert len(engines.runner("core", WIDE).spec.profile.profiles) == 2
    assert engines.runner("core", {**SIZES, "frames": 5}).spec.profile.width > 1


def test_an_exact_decoder_takes_every_number_of_frames_at_once(make: MakeSet, toy: ToyBackend) -> None:
    """The last chunk of a clip is smaller, and a full memory halves them."""
    engines = make(shapes="exact")
    sizes = {"chunk": 2, "frames": 4, "latent_height": 8, "latent_width": 6}
    assert run(engines, sizes, "vae_decoder") == "toy"
    assert run(engines, {**sizes, "chunk": 1}, "vae_decoder") == "toy"
    assert len(toy.builds_done) == 1


def test_eager_by_policy_builds_nothing_and_says_why_at_every_run_and_stop_names_the_node(
    make: MakeSet, toy: ToyBackend
) -> None:
    engines = make(on_missing="eager")
    assert [run(engines), run(engines), run(engines, {**SIZES, "frames": 5})] == ["eager"] * 3
    (note,) = engines.take_notes()
    missing = f"There is no engine for core in {engines.store.root}: build one with the Engine Builder."
    assert note.startswith("core runs in eager PyTorch, which is slower. There is no engine for core in ")
    assert run(engines, {**SIZES, "frames": 6}) == "eager"
    assert engines.take_notes() == [note], "it holds for this run too"
    assert engines.take_notes() == []
    with pytest.raises(MissingEngineError) as caught:
        run(make(on_missing="stop"))
    assert str(caught.value) == missing
    assert toy.builds_done == []
    assert not engines.store.root.exists()


def test_eager_that_is_no_fallback_needs_no_note(make: MakeSet, toy: ToyBackend) -> None:
    """By its name, and for what cannot be compiled, under every policy."""
    run(make())
    engines = make(backend="eager", on_missing="stop")
    assert [run(engines), run(engines, ODD)] == ["eager"] * 2
    assert engines.take_notes() == []
    engines = make(on_missing="stop")
    assert run(engines, SIZES, "conditioner") == "eager"
    assert engines.take_notes() == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("precision", value) for value in ("int4", "")),
        *(("shapes", value) for value in ("exactly", "RANGE")),
        ("on_missing", "ignore"),
        ("backend", "tpu"),
    ],
)
def test_an_unknown_policy_is_refused_with_what_is_known(make: MakeSet, field: str, value: str) -> None:
    known = "auto, toy, eager" if field == "backend" else ".*"
    with pytest.raises(InputError, match=rf"is one of {known}, found '{value}'"):
        make(**{"on_missing": "stop", field: value}).summary()


# Sizes that do not fit.


@pytest.mark.parametrize("on_missing", ["build", "eager", "stop"])
def test_one_size_that_runs_eager_does_not_take_the_engine_from_others(
    make: MakeSet, toy: ToyBackend, on_missing: str
) -> None:
    run(make())
    engines = make(on_missing=on_missing)
    for _ in range(2):
        if on_missing == "stop":
            with pytest.raises(MissingEngineError):
                run(engines, ODD)
        else:
            assert run(engines, ODD) == "eager"
            (note,) = engines.take_notes()
            assert "latent_width is 7, 1 more than a multiple of 2" in note
        assert run(engines, SIZES) == "toy"
    assert len(toy.builds_done) == 1


def test_sizes_that_run_eager_share_one_set_of_weights(make: MakeSet) -> None:
    model = ToyModel()
    engines = make(model, on_missing="eager")
    for frames in (1, 2, 3):
        run(engines, {**SIZES, "frames": frames})
    assert model.loads == [("core", "fp32")]


@pytest.mark.parametrize(
    ("near", "far", "wanted", "violation"),
    [
        ({"frames": 8}, {"frames": 16}, {"frames": 6}, "frames is 6, 2 below the smallest supported 8"),
        ({"frames": 8}, {"frames": 4}, {"frames": 10}, "frames is 10, 2 above the largest supported 8"),
        ({"latent_height": 16}, {"latent_height": 32}, {"latent_height": 12}, "latent_height is 12, 4 below"),
        ({"frames": 16}, {"frames": 5, "latent_height": 10}, {"frames": 4}, "frames is 4, 12 below"),
    ],
)
def test_a_near_miss_names_the_dimension_and_the_distance_to_the_nearest(
    make: MakeSet, near: dict[str, int], far: dict[str, int], wanted: dict[str, int], violation: str
) -> None:
    builder = make(shapes="exact")
    for sizes in (near, far):
        builder.build("core", {**SIZES, **sizes}, InProcess())
    with pytest.raises(MissingEngineError) as caught:
        make(on_missing="stop").runner("core", {**SIZES, **wanted})
    assert str(caught.value).startswith(f"No engine of 2 for core fits: in the nearest, {violation}")


@pytest.mark.parametrize("sizes", [{"frames": 17}, {"latent_height": 2}, {"batch": 3}, {"latent_width": 9}])
def test_a_size_that_the_network_does_not_take_is_not_built(make: MakeSet, sizes: dict[str, int]) -> None:
    with pytest.raises(InputError, match=f"^No engine can serve this size: {next(iter(sizes))} is "):
        make().build("core", {**SIZES, **sizes}, InProcess())


# Backends and precision.


def test_without_a_backend_it_runs_eager_or_stops_with_the_line_that_installs_one(
    make: MakeSet, toy: ToyBackend
) -> None:
    assert run(make(backend="auto")) == "toy"
    toy.available = Availability(False, "The toy is lost.", INSTALL)
    engines = make(backend="auto")
    assert run(engines) == "eager"
    (note,) = engines.take_notes()
    assert note.startswith("core runs in eager PyTorch, which is slower. No engine backend serves cpu here")
    assert INSTALL in note
    for backend in ("auto", "toy"):
        stopping = make(backend=backend, on_missing="stop")
        for ask in (run, EngineSet.summary, lambda engines: engines.build("core", SIZES, InProcess())):
            with pytest.raises(BackendUnavailableError, match=INSTALL):
                ask(stopping)
    with pytest.raises(BackendUnavailableError, match="^Eager PyTorch has no engines: "):
        make(backend="eager").build("core", SIZES, InProcess())


@pytest.mark.parametrize(
    ("device", "wanted", "precision"),
    [("cpu", "auto", "fp32"), ("cuda", "auto", "fp16"), ("cuda", "bf16", "bf16"), ("cpu", "fp16", "fp16")],
)
def test_the_precision_follows_the_device_unless_it_is_named(device: str, wanted: str, precision: str) -> None:
    assert EnginePolicy(precision=wanted).precision_on(torch.device(device)) == precision


def test_each_precision_has_its_own_engine(make: MakeSet) -> None:
    run(make())
    half = make(precision="fp16", on_missing="stop")
    with pytest.raises(MissingEngineError):
        half.runner("core", SIZES)


# Memory, notes and what is told.


def test_runners_can_be_unloaded_and_come_back(make: MakeSet) -> None:
    engines = make(on_missing="eager")
    run(make())
    assert engines.describe("core") == "not run yet, fp32 on cpu"
    assert [run(engines), run(engines, ODD), run(engines)] == ["toy", "eager", "toy"]
    runners = [engines.runner("core", SIZES), engines.runner("core", ODD)]
    assert [runner.backend for runner in runners] == ["toy", "eager"]
    engines.unload()
    assert not any(runner.is_loaded for runner in runners)
    assert [run(engines), run(engines, ODD)] == ["toy", "eager"]


def test_the_residency_is_asked_with_the_scratch_memory_of_the_size(make: MakeSet) -> None:
    seen: list[tuple[str, int]] = []

    class Watching(LoadInPlace):
        def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
            seen.append((runner.backend, scratch_bytes))
            return super().hold(runner, scratch_bytes)

        def clear(self) -> None:
            seen.append(("clear", 0))

    engines = make(memory_manager=Watching())
    run(engines)
    run(engines, {**SIZES, "frames": 7})
    assert seen == [("clear", 0), ("toy", 4000), ("toy", 7000)]


def test_the_report_of_a_build_names_the_component_and_cancels(toy: ToyBackend, tmp_path: Path) -> None:
    heard: list[tuple[str, float]] = []

    def report(stage: str, done: float) -> None:
        heard.append((stage, done))
        if "check" in stage:
            raise KeyboardInterrupt

    engines = EngineSet(ToyModel(), EngineStore(tmp_path), EnginePolicy(), CPU, report=report)
    with pytest.raises(KeyboardInterrupt):
        run(engines)
    assert all(stage.startswith("core: ") and 0 <= done <= 1 for stage, done in heard)
    assert keys(engines) == []
    assert list((tmp_path / ".staging").iterdir()) == []


def test_the_summary_counts_what_is_there_and_says_what_becomes_of_the_rest(make: MakeSet, toy: ToyBackend) -> None:
    def told(**policy: str) -> list[str]:
        return make(**policy).summary().splitlines()

    assert told() == ["toy, fp32 on cpu", "engines: 0 of 2", "the rest is built when needed"]
    run(make())
    assert told(on_missing="eager")[1:] == ["engines: 1 of 2", "the rest runs eager"]
    with pytest.raises(MissingEngineError, match="no engine for vae_decoder"):
        told(on_missing="stop")
    make().build("vae_decoder", SIZES, InProcess())
    for on_missing in MISS_POLICIES:
        assert told(on_missing=on_missing)[1] == "engines: 2 of 2"
    assert told(backend="eager") == ["eager, fp32 on cpu"]
    toy.available = Availability(False, "The toy is lost.", INSTALL)
    assert INSTALL in told()[0]


@pytest.mark.parametrize(("guided", "batch"), [(True, 2), (False, 1)])
def test_a_clips_sizes_are_in_latents(guided: bool, batch: int) -> None:
    sizes = clip_sizes(ToyModel(), 512, 320, 24, guided=guided)
    assert sizes == {"batch": batch, "frames": 24, "latent_height": 40, "latent_width": 64, "chunk": 8}


@pytest.mark.parametrize(("builds_later", "on_cuda"), [(False, "build"), (True, LATER)])
def test_it_builds_on_a_gpu_alone_and_later_where_somebody_does(builds_later: bool, on_cuda: str) -> None:
    expected = {"cuda": on_cuda, "cpu": "eager", "mps": "eager"}
    for wish in MISS_POLICIES:
        policy = EnginePolicy(on_missing=wish)
        found = {name: policy.on_missing_on(torch.device(name), builds_later=builds_later) for name in expected}
        assert found == (expected if wish == "auto" else dict.fromkeys(expected, wish)), "what was asked for by name"


@pytest.mark.parametrize("is_there", [True, False])
def test_on_a_cpu_it_runs_eager_and_says_so_once_on_the_loader(make: MakeSet, toy: ToyBackend, is_there: bool) -> None:
    """And that a library is missing, there alone."""
    if not is_there:
        toy.available = Availability(False, "The toy is lost.", INSTALL)
    engines = make(on_missing="auto")
    summary = engines.summary()
    assert (summary == f"eager, fp32 on cpu\n{messages.NOT_BUILT}") if is_there else (INSTALL in summary)
    engines.prepare(CHUNKED)
    assert run(engines) == "eager"
    assert engines.take_notes() == []
    assert toy.builds_done == []


def test_what_is_there_is_used_and_what_is_expected_is_what_runs(make: MakeSet, toy: ToyBackend) -> None:
    engines = make(on_missing="auto")
    assert engines.expected("core", SIZES).name == run(engines) == "eager"
    assert make().expected("core", SIZES).name == toy.name
    make().build("core", SIZES, InProcess())
    engines = make(on_missing="auto")
    assert engines.summary().splitlines() == ["toy, fp32 on cpu", "engines: 1 of 2", "the rest runs eager"]
    assert engines.expected("core", SIZES).name == run(engines) == toy.name
    assert run(engines, CHUNKED, "vae_decoder") == "eager"
    assert engines.take_notes() == []


def test_engines_built_in_one_go_are_one_sentence(make: MakeSet) -> None:
    engines = make()
    engines.prepare(CHUNKED)
    (note,) = engines.take_notes()
    assert note.startswith("2 engines built in ")
    assert note.endswith(" s,\nleast cosine 1.00000")
