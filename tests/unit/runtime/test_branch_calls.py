"""Guidance branches on two devices: accelerators beside them, and what the second device's failures leave."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.pipeline.acceleration.presets import Preset
from i2v_tensorrt.pipeline.acceleration.settings import Acceleration, ChangeCache, GuidanceGate
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.result_cache import result_key

from ...helpers.second_device import SecondDevice, SmallRoom
from ...helpers.stages import encoded, engines_of, planned, sampled

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy
STEPS = 4
LONG = Denoising(seed=5, guidance_scale=9.0, sampler=SamplerSettings(STEPS))
ACCELERATIONS = {
    "gate": Acceleration(guidance=GuidanceGate(end=0.5)),
    "interval": Acceleration(guidance=GuidanceGate(0.3, 0.7, reuse=False)),
    "change": Acceleration(step_cache=ChangeCache(0.5, 0.2)),
    "deep": Acceleration(deep_interval=2),
    "deep and gate": Acceleration(deep_interval=2, guidance=GuidanceGate(end=0.5)),
}


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return engines_of(tiny_folder, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encoded(engines)


@pytest.fixture(scope="module")
def expected(engines: EngineSet, conditioning: Conditioning) -> torch.Tensor:
    return sampled(engines, conditioning, LONG)


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


@pytest.mark.parametrize("name", ACCELERATIONS)
def test_accelerators_work_beside_it(engines: EngineSet, conditioning: Conditioning, name: str) -> None:
    preset = Preset("test", ACCELERATIONS[name])
    pair = SecondDevice(engines)
    found = sampled(pair.engines.with_preset(preset), conditioning, LONG)
    assert pair.batches
    assert set(pair.batches) == {1}
    assert is_same(found, sampled(engines.with_preset(preset), conditioning, LONG))
    if "gate" in name or name == "interval":
        assert len(pair.batches) < STEPS, "the second device has work at guided steps alone"


def test_without_guidance_the_second_device_rests(engines: EngineSet, conditioning: Conditioning) -> None:
    alone = Denoising(seed=5, guidance_scale=1.0, sampler=SamplerSettings(2))
    pair = SecondDevice(engines)
    assert torch.equal(sampled(pair.engines, conditioning, alone), sampled(engines, conditioning, alone))
    assert pair.batches == []


def failing(at: int, error: Exception) -> Callable[[int], None]:
    """Raises at the second device's call of that number."""

    def fail(number: int) -> None:
        if number == at:
            raise error

    return fail


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "Memory ran out on the second device"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "Memory ran out on the second device"),
        (EngineError("The engine broke."), "failed: the clip goes on with one device. The engine broke."),
    ],
)
def test_the_clip_goes_on_with_one_device(
    engines: EngineSet, conditioning: Conditioning, expected: torch.Tensor, at: int, error: Exception, words: str
) -> None:
    pair = SecondDevice(engines, fail=failing(at, error))
    assert is_same(sampled(pair.engines, conditioning, LONG), expected)
    assert [note for note in pair.engines.take_notes() if words in note]
    assert len(pair.batches) == at, "it is not called again in this clip"
    assert is_same(sampled(pair.engines, conditioning, LONG), expected)


def test_what_cannot_be_loaded_there_runs_on_one_device(
    engines: EngineSet, conditioning: Conditioning, expected: torch.Tensor
) -> None:
    pair = SecondDevice(engines, SmallRoom(error=torch.OutOfMemoryError("CUDA out of memory.")))
    assert is_same(sampled(pair.engines, conditioning, LONG), expected)
    assert pair.batches == []
    assert [note for note in pair.engines.take_notes() if "Memory ran out on the second device" in note]


def test_another_error_of_the_second_device_is_the_users(engines: EngineSet, conditioning: Conditioning) -> None:
    pair = SecondDevice(engines, fail=failing(1, RuntimeError("an illegal memory access was encountered")))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        sampled(pair.engines, conditioning, LONG)


def test_a_second_device_without_room_is_left_out_of_the_plan(
    engines: EngineSet, conditioning: Conditioning, expected: torch.Tensor
) -> None:
    pair = SecondDevice(engines, SmallRoom(1 << 10))
    assert planned(pair.engines, conditioning, LONG).clip.engines.second is None
    assert torch.equal(sampled(pair.engines, conditioning, LONG), expected)
    assert pair.batches == []
    (note,) = {note for note in pair.engines.take_notes() if "device" in note}
    assert note.startswith("One of two branches on cpu for 64x72 with 3 frames needs about ")
    assert note.endswith("One device makes the clip.")


def test_engines_are_wanted_for_one_branch(engines: EngineSet, conditioning: Conditioning) -> None:
    alone, pair = planned(engines, conditioning, LONG), planned(SecondDevice(engines).engines, conditioning, LONG)
    (components, sizes), (others, wide) = pair.clip.engine_sizes
    assert components == ("core",)
    assert sizes["batch"] == 1
    assert "core" not in others
    assert wide["batch"] == 2
    assert [sizes["batch"] for _, sizes in alone.clip.engine_sizes] == [2]
    assert pair.step.cost(pair.clip.size) < alone.step.cost(alone.clip.size)


def test_kept_results_of_one_device_keep_their_names(engines: EngineSet, conditioning: Conditioning) -> None:
    pair = SecondDevice(engines).engines
    keys = [result_key(planned(each, conditioning, LONG), conditioning) for each in (engines, pair, pair.beside(None))]
    assert keys[0] == keys[2] != keys[1]


def test_both_devices_give_their_memory_back(engines: EngineSet, conditioning: Conditioning) -> None:
    pair = SecondDevice(engines)
    sampled(pair.engines, conditioning, LONG)
    runners = [each.runners.runner("core", {}) for each in (engines, pair.second)]
    assert runners[0] is not runners[1]
    assert all(runner.is_loaded for runner in runners)
    pair.engines.unload()
    assert not any(runner.is_loaded for runner in runners)
