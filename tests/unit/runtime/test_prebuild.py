"""Engines ahead of time: one line a component, the whole job's fraction, and what was done stays."""

from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.pipeline.models.registry import FAMILIES
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.prebuild import ALL, Prebuild, component_names, prebuild

from ...helpers.clips import quiet
from ...helpers.toy_model import BROKE, MakeSet
from ...helpers.toys import ToyBackend

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
