"""Builds ahead of a clip and ahead of time; and those that failed, which nobody tries again at every prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import CheckpointError, EngineError, InputError
from i2v_tensorrt.engine_builder.backends.base import INSIDE, OUTSIDE
from i2v_tensorrt.pipeline.models.registry import FAMILIES
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.prebuild import ALL, Prebuild, component_names, prebuild

from ...helpers.stages import quiet
from ...helpers.toy_host import Room
from ...helpers.toy_model import BROKE, CHUNKED, ODD, SIZES, MakeSet, ToyModel, breaking, built, mend, run
from ...helpers.toys import InProcess, ToyBackend, ToySource, toy_network

JOB = Prebuild(("core", "vae_decoder"), width=48, height=64, num_frames=4)


@pytest.fixture
def engines(make: MakeSet) -> EngineSet:
    return make()


def test_every_component_is_built_for_the_size_and_told_in_a_line(engines: EngineSet, toy: ToyBackend) -> None:
    heard: list[tuple[str, float]] = []
    lines = prebuild(engines, JOB, lambda stage, done: heard.append((stage, done)))
    fractions = [done for _, done in heard]
    assert fractions == sorted(fractions), "of the whole job"
    assert heard[-1] == ("done", 1.0)
    for stage, done in heard[:-1]:
        assert (done <= 0.5) if stage.startswith("core: ") else (done >= 0.5 and stage.startswith("vae_decoder: "))
    assert [line.split(":")[0] for line in lines] == ["core", "vae_decoder"]
    assert all("built in " in line and " s by toy for x86_64, fp32, " in line for line in lines)
    assert all(line.endswith("cosine 1.0000000, 200 dB") for line in lines), "the toy is the reference itself"
    denoiser, decoder = (spec.profile.optimum for spec in toy.builds_done)
    assert denoiser == {"batch": 2, "frames": 4, "latent_height": 8, "latent_width": 6}
    assert decoder == {"chunk": 4, "frames": 4, "latent_height": 8, "latent_width": 6}


def test_under_a_policy_of_presets_those_are_built(make: MakeSet, toy: ToyBackend) -> None:
    prebuild(make(shapes="presets", presets=(ClipSize(64, 64, 4), ClipSize(64, 128, 4))), JOB, quiet)
    sides = [
        [(p.optimum["latent_height"], p.optimum["latent_width"]) for p in s.profile.profiles] for s in toy.builds_done
    ]
    assert sides == [[(8, 8), (16, 8)]] * 2


def test_what_is_there_is_not_built_again_unless_forced(engines: EngineSet, toy: ToyBackend) -> None:
    prebuild(engines, JOB, quiet)
    assert all(": already there by toy" in line for line in prebuild(engines, JOB, quiet))
    assert len(toy.builds_done) == 2
    forced = Prebuild(JOB.components, JOB.width, JOB.height, JOB.num_frames, force=True)
    assert all(": built in " in line for line in prebuild(engines, forced, quiet))
    assert len(toy.builds_done) == 4


def test_one_that_cannot_be_built_ends_the_job_and_the_others_stay(engines: EngineSet, toy: ToyBackend) -> None:
    def fail_second(folder: Path) -> None:
        if toy.builds_done:
            raise EngineError(BROKE)

    toy.while_building = fail_second
    with pytest.raises(EngineError, match=BROKE):
        prebuild(engines, JOB, quiet)
    assert [plan.manifest.spec.network.component for plan in engines.store.plans()] == ["core"]


def test_an_engine_that_was_not_run_here_is_said_to_be_unverified(engines: EngineSet, toy: ToyBackend) -> None:
    job = Prebuild(("core",), 64, 64, 4)
    prebuild(engines, job, quiet)
    (plan,) = engines.store.plans()
    engines.store.set_verdict(plan, None)  # type: ignore[arg-type]
    (line,) = prebuild(engines, job, quiet)
    assert line.endswith("unverified here")


def test_the_components_are_those_of_all_families_once() -> None:
    names = component_names()
    assert len(set(names)) == len(names)
    assert ALL not in names
    assert all(set(family.engine_components) <= set(names) for family in FAMILIES)


@pytest.mark.parametrize(
    ("job", "told"),
    [
        *(
            (
                Prebuild(("core", component), 48, 64, 4),
                rf"^The networks to compile are core, vae_decoder, found '{component}'\.$",
            )
            for component in ("flux", "conditioner", ALL)
        ),
        (Prebuild(("core",), 64, 64, 40), "frames is 40, 24 above the largest supported 16"),
    ],
)
def test_what_the_model_does_not_compile_is_refused_before_anything_is_built(
    engines: EngineSet, toy: ToyBackend, job: Prebuild, told: str
) -> None:
    with pytest.raises(InputError, match=told):
        prebuild(engines, job, quiet)
    assert toy.builds_done == []


def test_preparing_builds_all_that_a_clip_lacks_and_nothing_else(make: MakeSet, toy: ToyBackend) -> None:
    engines = make()
    for _ in range(2):
        engines.prepare(CHUNKED)
        assert built(toy) == ["core", "vae_decoder"]
    assert run(engines) == "toy"
    assert len(toy.builds_done) == 2


@pytest.mark.parametrize("policy", [{"on_missing": "eager"}, {"on_missing": "stop"}, {"backend": "eager"}])
def test_preparing_builds_nothing_where_that_is_not_the_policy(
    make: MakeSet, toy: ToyBackend, policy: dict[str, str]
) -> None:
    engines = make(**policy)
    engines.prepare(CHUNKED)
    assert toy.builds_done == []
    assert engines.take_notes() == []


@pytest.mark.parametrize(("words", "kind"), [(BROKE, EngineError), ("The file has gone.", CheckpointError)])
def test_preparing_leaves_what_fails_for_whoever_runs_the_component(
    make: MakeSet, toy: ToyBackend, words: str, kind: type[Exception]
) -> None:
    """Such as a LoRA that has gone since."""
    breaking(toy, words, kind)
    engines = make()
    engines.prepare(CHUNKED)
    assert engines.take_notes() == []
    if kind is EngineError:
        assert run(engines) == "eager"
        assert engines.take_notes() == [f"core runs in eager PyTorch, which is slower. {words}"]


def test_what_cannot_be_built_makes_nobody_leave_the_device(make: MakeSet, toy: ToyBackend) -> None:
    """Room is made once for builds that fail, and not at all for sizes that no engine can serve."""
    device = Room()
    engines = make(memory_manager=device)
    engines.prepare({**ODD, "chunk": 10_000})
    assert device.cleared == 0
    breaking(toy)
    for _ in range(3):
        engines.prepare(CHUNKED)
    assert device.cleared == 1


@pytest.mark.parametrize("on_missing", ["eager", "build"])
def test_room_is_made_only_where_a_build_follows(make: MakeSet, toy: ToyBackend, on_missing: str) -> None:
    device = Room()
    engines = make(memory_manager=device, on_missing=on_missing)
    run(engines, ODD)
    run(engines)
    assert device.cleared == len(toy.builds_done) == (on_missing == "build")


@pytest.fixture
def tries(toy: ToyBackend) -> list[Path]:
    """Where builds were begun; each fails."""
    return breaking(toy)


def test_another_set_does_not_try_again_and_says_why(make: MakeSet, tries: list[Path]) -> None:
    assert run(make()) == "eager"
    engines = make()
    assert run(engines) == "eager"
    assert len(tries) == 1
    (note,) = engines.take_notes()
    assert note == (
        f"core runs in eager PyTorch, which is slower. {BROKE} "
        "It failed before, and is tried again after a restart or by an Engine Builder."
    )


def test_nobody_leaves_the_device_for_a_build_that_is_not_tried(make: MakeSet, tries: list[Path]) -> None:
    make().prepare(CHUNKED)
    device = Room()
    engines = make(memory_manager=device)
    engines.prepare(CHUNKED)
    assert [run(engines), run(engines, CHUNKED, "vae_decoder")] == ["eager", "eager"]
    assert (device.cleared, len(tries)) == (0, 2)


def other_size(make: MakeSet, toy: ToyBackend) -> EngineSet:
    return make(shapes="exact")


def other_precision(make: MakeSet, toy: ToyBackend) -> EngineSet:
    return make(precision="fp16")


def other_version(make: MakeSet, toy: ToyBackend) -> EngineSet:
    toy.version = "2.0"
    return make()


def other_weights(make: MakeSet, toy: ToyBackend) -> EngineSet:
    model = ToyModel()
    denoiser = model.components["core"]
    model.components["core"] = type(denoiser)(toy_network(weights_sha256="b" * 64), denoiser.load)
    return make(model)


@pytest.mark.parametrize("holds_weights", [True, False])
@pytest.mark.parametrize("other", [other_size, other_precision, other_version, other_weights])
def test_another_engine_is_tried(
    make: MakeSet,
    toy: ToyBackend,
    tries: list[Path],
    other: Callable[[MakeSet, ToyBackend], EngineSet],
    monkeypatch: pytest.MonkeyPatch,
    holds_weights: bool,
) -> None:
    """One without weights too, for it may have failed of the weights that it was compared with."""
    monkeypatch.setattr(ToyBackend, "weights", (INSIDE if holds_weights else OUTSIDE,))
    run(make())
    other(make, toy).runner("core", SIZES)
    assert len(tries) == 2


def test_the_engine_builder_tries_again(make: MakeSet, toy: ToyBackend, tries: list[Path]) -> None:
    run(make())
    with pytest.raises(EngineError, match=BROKE):
        make().build("core", SIZES, InProcess())
    assert len(tries) == 2
    run(make())
    assert len(tries) == 2
    mend(toy)
    make().build("core", SIZES, InProcess())
    engines = make()
    assert run(engines) == "toy"
    (plan,) = engines.store.plans()
    engines.store.delete(plan.manifest.key)
    assert run(make()) == "toy", "it has been built since, so it can be built"


@pytest.mark.parametrize(
    "words",
    [
        "Building core needs about 5.0 GiB of memory, found 3.0 GiB free: close other programs and try again.",
        "The build of core was killed, most often because memory ran out: close other programs.",
        "CUDA out of memory in core.",
    ],
)
def test_what_had_too_little_memory_is_tried_again(make: MakeSet, toy: ToyBackend, words: str) -> None:
    tries = breaking(toy, words)
    for _ in range(2):
        engines = make()
        assert [run(engines), run(engines)] == ["eager", "eager"]
    assert len(tries) == 2


def test_what_was_cancelled_is_tried_again(make: MakeSet, toy: ToyBackend) -> None:
    breaking(toy, kind=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(make())
    mend(toy)
    assert run(make()) == "toy"


# Building for a clip of which nothing can come.


class HugeDenoiser(ToyModel):
    """A toy whose denoiser takes more memory to build than any machine has."""

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> ToySource:
        return ToySource(size_bytes=1 << 60 if component == "core" else 0)


@pytest.mark.parametrize(("room", "found"), [(1 << 40, []), (1 << 61, ["vae_decoder"]), (None, ["vae_decoder"])])
def test_nothing_is_built_where_the_core_can_neither_be_built_nor_run(
    make: MakeSet, toy: ToyBackend, room: int | None, found: list[str]
) -> None:
    engines = make(HugeDenoiser(), Room(room))
    engines.prepare(CHUNKED)
    assert built(toy) == found
    assert run(engines) == "eager"
    (note,) = (note for note in engines.take_notes() if "core" in note)
    assert note.startswith("core runs in eager PyTorch, which is slower. Building core needs about ")


def test_the_others_are_built_beside_a_core_that_is_there(make: MakeSet, toy: ToyBackend) -> None:
    make().build("core", SIZES, InProcess())
    make(HugeDenoiser(), Room(0)).prepare(CHUNKED)
    assert built(toy) == ["core", "vae_decoder"]
