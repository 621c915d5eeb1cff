"""A result comes back where every input is the same, bit for bit, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i2v_tensorrt.engine_builder.backends.base import Backend
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.request import ClipRequest, Encoded
from i2v_tensorrt.pipeline.tensor_cache import CacheLimits, ConditioningCache
from i2v_tensorrt.runtime.clip import encode_clip
from i2v_tensorrt.runtime.clip_plan import Denoising, SamplingPlan, plan_clip, plan_sampling
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.result_cache import LIMITS, Sampled, result_key, sample_or_recall

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

REQUEST = ClipRequest(Image.new("RGB", (70, 50), "teal"), "a boat", "blurry", 64, 72, 2, 8)
DENOISING = Denoising(5, 9.0, SamplerSettings(2))
Request = tuple[EngineSet, Conditioning, Denoising]


def engines_of(folder: Path, store: Path, **policy: Any) -> EngineSet:
    chosen = {"backend": "eager", "precision": "fp32", **policy}
    return EngineSet(open_model(folder), EngineStore(store), EnginePolicy(**chosen), torch.device("cpu"))


def quiet(*_: object) -> None:
    """Watches no progress."""


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return engines_of(tiny_folder, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encode_clip(plan_clip(engines, REQUEST.size), REQUEST, ConditioningCache(None), quiet)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The component of every call of a network."""
    seen: list[str] = []
    run = EagerRunner._run

    def watched(self: EagerRunner, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(self.spec.network.component)
        return run(self, inputs)

    monkeypatch.setattr(EagerRunner, "_run", watched)
    return seen


def asked(request: Request, results: ConditioningCache | None) -> Sampled:
    return sample_or_recall(planned(*request), request[1], quiet, results)


def planned(engines: EngineSet, conditioning: Conditioning, denoising: Denoising) -> SamplingPlan:
    return plan_sampling(plan_clip(engines, conditioning.size), denoising)


def key(engines: EngineSet, conditioning: Conditioning, denoising: Denoising) -> str | None:
    return result_key(planned(engines, conditioning, denoising), conditioning)


def test_the_same_request_runs_once_and_across_restarts(
    engines: EngineSet, conditioning: Conditioning, runs: list[str], tmp_path: Path
) -> None:
    request, results = (engines, conditioning, DENOISING), ConditioningCache(tmp_path)
    first = asked(request, results)
    assert (first.place, runs) == ("sampled", ["core"] * 2)
    found = [asked(request, results), asked(request, ConditioningCache(tmp_path))]
    assert [each.place for each in found] == ["memory", "disk"]
    assert all(torch.equal(each.latents, first.latents) for each in found)
    assert {each.elapsed_s for each in found} == {first.elapsed_s}
    assert len(runs) == 2


def test_without_a_cache_it_runs_each_time(engines: EngineSet, conditioning: Conditioning, runs: list[str]) -> None:
    assert [asked((engines, conditioning, DENOISING), None).place for _ in range(2)] == ["sampled"] * 2
    assert len(runs) == 4


def test_what_a_user_does_with_a_result_does_not_change_the_kept_one(
    engines: EngineSet, conditioning: Conditioning, tmp_path: Path
) -> None:
    request, results = (engines, conditioning, DENOISING), ConditioningCache(tmp_path)
    kept = asked(request, results).latents.clone()
    for _ in range(2):
        asked(request, results).latents.zero_()
    assert torch.equal(asked(request, results).latents, kept)


def other_tensor(conditioning: Conditioning) -> Conditioning:
    tensors = {name: tensor.clone() for name, tensor in conditioning.tensors.items()}
    tensors["context"].view(-1)[-1] += 1e-6
    return replace(conditioning, tensors=tensors)


SETTINGS: dict[str, Callable[[Denoising], Denoising]] = {
    "seed": lambda asked: replace(asked, seed=6),
    "guidance": lambda asked: replace(asked, guidance_scale=9.1),
    "first guidance": lambda asked: replace(asked, min_guidance_scale=2.0),
    "steps": lambda asked: replace(asked, sampler=SamplerSettings(3)),
    "scheduler": lambda asked: replace(asked, sampler=SamplerSettings(2, "euler")),
    "eta": lambda asked: replace(asked, sampler=SamplerSettings(2, eta=0.1)),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_another_setting_is_another_request(engines: EngineSet, conditioning: Conditioning, name: str) -> None:
    other = SETTINGS[name](DENOISING)
    assert key(engines, conditioning, other) != key(engines, conditioning, DENOISING)


@pytest.mark.parametrize("field", ["width", "height", "num_frames", "fps", "tensors"])
def test_other_conditioning_is_another_request(engines: EngineSet, conditioning: Conditioning, field: str) -> None:
    if field == "tensors":
        other = other_tensor(conditioning)
    else:
        other = replace(conditioning, **{field: getattr(conditioning, field) + 8})
    assert key(engines, other, DENOISING) != key(engines, conditioning, DENOISING)
    told = replace(conditioning, notes=("Other words.",), place="disk", encode_s=7.0)
    assert key(engines, told, DENOISING) == key(engines, conditioning, DENOISING)


@pytest.mark.parametrize("policy", [{"precision": "bf16"}, {"backend": "onnxruntime"}, {"shapes": "exact"}], ids=str)
def test_another_policy_is_another_request(
    engines: EngineSet, conditioning: Conditioning, policy: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    other = engines_of(tiny_folder, tmp_path, **policy)
    assert key(other, conditioning, DENOISING) != key(engines, conditioning, DENOISING)


def test_other_weights_are_another_request(engines: EngineSet, conditioning: Conditioning, tmp_path: Path) -> None:
    other = engines_of(write_tiny_checkpoint(tmp_path / "other", seed=1), tmp_path / "store")
    assert key(other, conditioning, DENOISING) != key(engines, conditioning, DENOISING)


def test_the_key_is_the_same_in_another_set_of_engines(
    engines: EngineSet, conditioning: Conditioning, tiny_folder: Path, tmp_path: Path
) -> None:
    again = engines_of(tiny_folder, tmp_path / "elsewhere")
    assert key(again, conditioning, DENOISING) == key(engines, conditioning, DENOISING)


def test_eager_in_the_place_of_an_engine_is_not_kept(
    conditioning: Conditioning, tiny_folder: Path, tmp_path: Path
) -> None:
    fallen = engines_of(tiny_folder, tmp_path / "store", backend="onnxruntime", on_missing="eager")
    results = ConditioningCache(tmp_path / "results")
    assert [asked((fallen, conditioning, DENOISING), results).place for _ in range(2)] == ["sampled"] * 2
    assert not (tmp_path / "results").exists()


class Hastened(EngineSet):
    """A set that is to run by ONNX Runtime until a step is done, and then by eager PyTorch, as it did all along."""

    is_past = False

    def expected(self, component: str, sizes: Mapping[str, int]) -> Backend:
        return BACKENDS["eager" if self.is_past else "onnxruntime"]


def test_what_a_clip_should_run_by_is_settled_before_it_runs(
    engines: EngineSet, conditioning: Conditioning, tmp_path: Path
) -> None:
    """Or it would be kept under the name of what another backend makes."""
    hastened = Hastened(engines.model, engines.store, engines.policy, engines.device)
    results = ConditioningCache(tmp_path)

    def on_step(*_: object) -> None:
        hastened.is_past = True

    plan = planned(hastened, conditioning, DENOISING)
    assert sample_or_recall(plan, conditioning, on_step, results).place == "sampled"
    assert list(tmp_path.iterdir()) == []


def test_eager_as_a_matter_of_course_is_kept(conditioning: Conditioning, tiny_folder: Path, tmp_path: Path) -> None:
    on_cpu = engines_of(tiny_folder, tmp_path / "store", backend="onnxruntime", on_missing="auto")
    results = ConditioningCache(tmp_path / "results")
    assert [asked((on_cpu, conditioning, DENOISING), results).place for _ in range(2)] == ["sampled", "memory"]


def test_a_backend_that_is_not_here_has_no_results(
    conditioning: Conditioning, tiny_folder: Path, tmp_path: Path
) -> None:
    absent = engines_of(tiny_folder, tmp_path, backend="tensorrt", on_missing="eager")
    assert key(absent, conditioning, DENOISING) is None
    assert asked((absent, conditioning, DENOISING), ConditioningCache(tmp_path / "results")).place == "sampled"


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.zeros(2, 4, 8, 8)},
        {"latents": torch.zeros(2, 4, 9, 8, dtype=torch.float16)},
        {"other": torch.zeros(1)},
    ],
    ids=["size", "dtype", "name"],
)
def test_what_is_no_result_of_this_request_is_made_again(
    engines: EngineSet, conditioning: Conditioning, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    request, results = (engines, conditioning, DENOISING), ConditioningCache(tmp_path)
    name = key(*request)
    assert name is not None
    results.put(name, Encoded(tensors), 1.0)
    first = asked(request, results)
    assert first.place == "sampled"
    assert torch.equal(asked(request, ConditioningCache(tmp_path)).latents, first.latents)


def test_it_is_bounded(engines: EngineSet, conditioning: Conditioning, tmp_path: Path) -> None:
    one = asked((engines, conditioning, DENOISING), None).latents.nbytes
    results = ConditioningCache(tmp_path, CacheLimits(memory_bytes=2 * one, disk_bytes=3 * one))
    for seed in range(5):
        asked((engines, conditioning, replace(DENOISING, seed=seed)), results)
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * one
    assert LIMITS.disk_bytes < 1 << 32


def test_a_quantized_cores_result_has_no_name(engines: EngineSet, conditioning: Conditioning, tmp_path: Path) -> None:
    """Its scales are no part of the policy: two engines with scales from other pictures would share one."""
    policy = replace(engines.policy, backend="auto", precision="int8")
    quantized = EngineSet(engines.model, engines.store, policy, engines.device)
    assert key(quantized, conditioning, DENOISING) is None
