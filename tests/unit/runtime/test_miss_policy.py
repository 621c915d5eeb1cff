"""What `auto` does where no engine fits: it builds where that pays, and else runs eager as a matter of course."""

import pytest
import torch

from i2v_tensorrt.engine_builder.backends.base import Availability
from i2v_tensorrt.runtime.engines import messages
from i2v_tensorrt.runtime.engines.policy import LATER, MISS_POLICIES, EnginePolicy

from ...helpers.toy_model import CHUNKED, INSTALL, SIZES, MakeSet, run
from ...helpers.toys import InProcess, ToyBackend


@pytest.mark.parametrize(("builds_later", "on_cuda"), [(False, "build"), (True, LATER)])
def test_it_builds_on_a_gpu_alone_and_later_where_somebody_does(builds_later: bool, on_cuda: str) -> None:
    expected = {"cuda": on_cuda, "cpu": "eager", "mps": "eager"}
    for wish in MISS_POLICIES:
        policy = EnginePolicy(on_missing=wish)
        found = {name: policy.on_missing_on(torch.device(name), builds_later=builds_later) for name in expected}
        assert found == (expected if wish == "auto" else dict.fromkeys(expected, wish)), "what was asked for by name"


def test_on_a_cpu_it_runs_eager_and_says_so_once_on_the_loader(make: MakeSet, toy: ToyBackend) -> None:
    engines = make(on_missing="auto")
    assert engines.summary() == f"eager, fp32 on cpu\n{messages.NOT_BUILT}"
    engines.prepare(CHUNKED)
    assert run(engines) == "eager"
    assert engines.take_notes() == []
    assert toy.builds_done == []


def test_what_is_there_is_used(make: MakeSet) -> None:
    make().build("core", SIZES, InProcess())
    engines = make(on_missing="auto")
    assert engines.summary().splitlines() == ["toy, fp32 on cpu", "engines: 1 of 2", "the rest runs eager"]
    assert run(engines) == "toy"
    assert run(engines, CHUNKED, "vae_decoder") == "eager"
    assert engines.take_notes() == []


def test_what_is_expected_is_what_runs(make: MakeSet, toy: ToyBackend) -> None:
    engines = make(on_missing="auto")
    assert engines.expected("core", SIZES).name == run(engines) == "eager"
    assert make().expected("core", SIZES).name == toy.name
    make().build("core", SIZES, InProcess())
    later = make(on_missing="auto")
    assert later.expected("core", SIZES).name == run(later) == toy.name


def test_a_library_that_is_missing_is_told_on_the_loader_alone(make: MakeSet, toy: ToyBackend) -> None:
    toy.available = Availability(False, "The toy is lost.", INSTALL)
    engines = make(on_missing="auto")
    assert INSTALL in engines.summary()
    assert run(engines) == "eager"
    assert engines.take_notes() == []


def test_engines_built_in_one_go_are_one_sentence(make: MakeSet) -> None:
    engines = make()
    engines.prepare(CHUNKED)
    (note,) = engines.take_notes()
    assert note.startswith("2 engines built in ")
    assert note.endswith(" s,\nleast cosine 1.00000")
