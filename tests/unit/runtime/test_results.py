"""A result comes back where every input is the same, bit for bit, and nowhere else: samples, videos, their names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import Guidance, NetworkSpec, Scope, TensorSpec
from i2v_tensorrt.engine_builder.backends.base import Backend
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.conditioning import Conditioning, conditioning_key
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.media.formats import Audio, VideoOptions
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.models.model_networks import Component
from i2v_tensorrt.pipeline.request import ClipRequest, Encoded
from i2v_tensorrt.pipeline.tensor_cache import CacheLimits, ConditioningCache
from i2v_tensorrt.runtime.clip_plan import Denoising, plan_clip, plan_sampling
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.result_cache import LIMITS, Sampled, result_key, sample_or_recall
from i2v_tensorrt.runtime.saved_videos import LIMITS as VIDEO_LIMITS
from i2v_tensorrt.runtime.saved_videos import SavedVideo, note, noted, video_key

from ...helpers.stages import GUIDED, encoded, engines_of, planned, quiet
from ...helpers.toys import CPU, TARGET

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return engines_of(tiny_folder, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encoded(engines)


def asked(
    engines: EngineSet, conditioning: Conditioning, results: ConditioningCache | None, denoising: Denoising = GUIDED
) -> Sampled:
    return sample_or_recall(planned(engines, conditioning, denoising), conditioning, quiet, results)


def key(engines: EngineSet, conditioning: Conditioning, denoising: Denoising = GUIDED) -> str | None:
    return result_key(planned(engines, conditioning, denoising), conditioning)


def test_the_same_request_runs_once_and_across_restarts(
    engines: EngineSet, conditioning: Conditioning, calls: list[tuple[str, int]], tmp_path: Path
) -> None:
    results = ConditioningCache(tmp_path)
    first = asked(engines, conditioning, results)
    assert (first.place, [name for name, _ in calls]) == ("sampled", ["core"] * 3)
    found = [asked(engines, conditioning, each) for each in (results, ConditioningCache(tmp_path))]
    assert [each.place for each in found] == ["memory", "disk"]
    assert all(torch.equal(each.latents, first.latents) for each in found)
    assert {each.elapsed_s for each in found} == {first.elapsed_s}
    assert len(calls) == 3
    assert [asked(engines, conditioning, None).place for _ in range(2)] == ["sampled"] * 2, "without a cache"
    assert len(calls) == 3 * 3


def test_what_a_user_does_with_a_result_does_not_change_the_kept_one(
    engines: EngineSet, conditioning: Conditioning, tmp_path: Path
) -> None:
    results = ConditioningCache(tmp_path)
    kept = asked(engines, conditioning, results).latents.clone()
    for _ in range(2):
        asked(engines, conditioning, results).latents.zero_()
    assert torch.equal(asked(engines, conditioning, results).latents, kept)


def other_tensor(conditioning: Conditioning) -> Conditioning:
    tensors = {name: tensor.clone() for name, tensor in conditioning.tensors.items()}
    tensors["context"].view(-1)[-1] += 1e-6
    return replace(conditioning, tensors=tensors)


SETTINGS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 6},
    "guidance": {"guidance_scale": 9.1},
    "first guidance": {"min_guidance_scale": 2.0},
    "steps": {"sampler": SamplerSettings(4)},
    "scheduler": {"sampler": SamplerSettings(3, "euler")},
    "eta": {"sampler": SamplerSettings(3, eta=0.1)},
    "strength": {"sampler": SamplerSettings(3, strength=0.4)},
}


@pytest.mark.parametrize("name", [*SETTINGS, "width", "height", "num_frames", "fps", "tensors"])
def test_another_setting_or_other_conditioning_is_another_request(
    engines: EngineSet, conditioning: Conditioning, name: str
) -> None:
    if name in SETTINGS:
        other = key(engines, conditioning, replace(GUIDED, **SETTINGS[name]))
    elif name == "tensors":
        other = key(engines, other_tensor(conditioning))
    else:
        other = key(engines, replace(conditioning, **{name: getattr(conditioning, name) + 8}))
    assert other != key(engines, conditioning)
    begun = [result_key(planned(engines, conditioning), conditioning, torch.full((1,), value)) for value in (0.0, 1.0)]
    assert len({key(engines, conditioning), *begun}) == 3, "latents to begin from count"
    told = replace(conditioning, notes=("Other words.",), place="disk", encode_s=7.0)
    assert key(engines, told) == key(engines, conditioning)


@pytest.mark.parametrize("policy", [{"precision": "bf16"}, {"backend": "onnxruntime"}, {"shapes": "exact"}], ids=str)
def test_another_policy_is_another_request_and_another_set_of_engines_is_not(
    engines: EngineSet, conditioning: Conditioning, policy: dict[str, str], tiny_folder: Path, tmp_path: Path
) -> None:
    assert key(engines_of(tiny_folder, tmp_path, **policy), conditioning) != key(engines, conditioning)
    assert key(engines_of(tiny_folder, tmp_path), conditioning) == key(engines, conditioning)
    other_weights = engines_of(write_tiny_checkpoint(tmp_path / "other", seed=1), tmp_path)
    assert key(other_weights, conditioning) != key(engines, conditioning)


@pytest.mark.parametrize(("on_missing", "again"), [("eager", "sampled"), ("auto", "memory")])
def test_eager_is_kept_as_a_matter_of_course_and_not_in_the_place_of_an_engine(
    conditioning: Conditioning, tiny_folder: Path, tmp_path: Path, on_missing: str, again: str
) -> None:
    fallen = engines_of(tiny_folder, tmp_path / "store", backend="onnxruntime", on_missing=on_missing)
    results = ConditioningCache(tmp_path / "results")
    assert [asked(fallen, conditioning, results).place for _ in range(2)] == ["sampled", again]
    assert (tmp_path / "results").exists() == (again == "memory")


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

    plan = planned(hastened, conditioning)
    assert sample_or_recall(plan, conditioning, on_step, results).place == "sampled"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "policy", [{"backend": "tensorrt", "on_missing": "eager"}, {"backend": "auto", "precision": "int8"}], ids=str
)
def test_a_backend_that_is_not_here_and_a_quantized_core_have_no_results(
    conditioning: Conditioning, tiny_folder: Path, tmp_path: Path, policy: dict[str, str]
) -> None:
    """Scales are no part of the policy: two engines with scales from other pictures would share a name."""
    nameless = engines_of(tiny_folder, tmp_path, **policy)
    assert key(nameless, conditioning) is None
    if policy["backend"] == "tensorrt":
        assert asked(nameless, conditioning, ConditioningCache(tmp_path / "results")).place == "sampled"


@pytest.mark.parametrize(
    "tensors",
    [
        {"latents": torch.zeros(3, 4, 8, 8)},
        {"latents": torch.zeros(3, 4, 9, 8, dtype=torch.float16)},
        {"other": torch.zeros(1)},
    ],
    ids=["size", "dtype", "name"],
)
def test_what_is_no_result_of_this_request_is_made_again(
    engines: EngineSet, conditioning: Conditioning, tensors: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    results, name = ConditioningCache(tmp_path), key(engines, conditioning)
    assert name is not None
    results.put(name, Encoded(tensors), 1.0)
    first = asked(engines, conditioning, results)
    assert first.place == "sampled"
    assert torch.equal(asked(engines, conditioning, ConditioningCache(tmp_path)).latents, first.latents)


def test_it_is_bounded(engines: EngineSet, conditioning: Conditioning, tmp_path: Path) -> None:
    one = asked(engines, conditioning, None).latents.nbytes
    results = ConditioningCache(tmp_path, CacheLimits(memory_bytes=2 * one, disk_bytes=3 * one))
    for seed in range(5):
        asked(engines, conditioning, results, replace(GUIDED, seed=seed))
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 3 * one
    assert LIMITS.disk_bytes < 1 << 32


FIXED = ClipRequest(Image.new("RGB", (70, 50), (1, 2, 3)), "a boat", "blurry", 64, 72, 3, 8)
CONDITIONING_KEY = "e12e0842f2fdcc493fb019db1ad5ee9aac1b9930bbef8d65948d1b6cd83ebb89"
RESULT_KEYS = {
    9.0: "a3b53e7f99e30e29a95995acd2db3e65d68ff8ce3ea8e0a3bc9a45ac466e0868",
    1.0: "b225a6477fdab7725b26f61b2798b451be0761e849d4463506fd2094ae84ed85",
}
"""By the guidance scale: what is on disk has these names for these very values."""


class Fixed(I2VGenXL):
    """A model that depends on no library's version, and on none of the pack's code."""

    latent_scale = 0.5  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    @cached_property
    def encode_sha256(self) -> str:
        return "e" * 64

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        return {"beta_start": 0.5, "beta_end": 1.0}

    @cached_property
    def components(self) -> Mapping[str, Component]:
        inputs = (
            TensorSpec("sample", ("batch", 4, "frames", "latent_height", "latent_width")),
            TensorSpec("context", ("batch", 3), "float32", Scope.CLIP, Guidance.PER_BRANCH, (0, 1)),
        )
        limits = ShapeProfile({"batch": DimRange(1, 2, 2), "frames": DimRange(1, 16, 64)})
        spec = NetworkSpec("toy", "core", "c" * 64, "w" * 64, inputs, inputs[:1], limits, code="code")
        return {"core": Component(spec, lambda precision, rewrites=(): torch.nn.Identity())}


class Eager(EagerBackend):
    """Eager PyTorch of no version."""

    def target(self, device: torch.device) -> Any:
        return TARGET


class Set(EngineSet):
    def expected(self, component: str, sizes: Mapping[str, int]) -> Eager:
        return Eager()


def test_cached_conditioning_and_results_keep_their_names(tiny_folder: Path, tmp_path: Path) -> None:
    model = Fixed.open(tiny_folder)
    assert conditioning_key(model, FIXED, "fp32") == CONDITIONING_KEY
    engines = Set(model, EngineStore(tmp_path), EnginePolicy("eager", "fp32"), CPU)
    tensors = {"context": torch.arange(6.0).reshape(2, 3), "image_cond": torch.ones(1, 2, dtype=torch.float64)}
    conditioning = Conditioning("i2vgen_xl", 64, 72, 3, 8, tensors, (), "encoded", 1.0)
    clip = plan_clip(engines, conditioning.size)
    for scale, key in RESULT_KEYS.items():
        plan = plan_sampling(clip, Denoising(5, scale, SamplerSettings(2, eta=0.5), 0.5, 2.0))
        assert result_key(plan, conditioning) == key


OPTIONS = VideoOptions("mp4-h264", 8.0, None, False)
SOUND = Audio(torch.linspace(-1, 1, 100).reshape(1, 100), 8000)
VIDEO = SavedVideo("video", "clip_00001_.mp4", "a" * 64, ("video/clip_00001_.mp4", "8 frames"), 1.5)
OTHERS: dict[str, dict[str, Any]] = {
    "another value": {"frames": torch.full((2, 4, 4, 3), 0.5)},
    "another shape": {"frames": torch.zeros(2, 4, 3, 4)},
    "another type": {"frames": torch.zeros(2, 4, 4, 3, dtype=torch.float64)},
    "fps": {"options": replace(OPTIONS, fps=9.0)},
    "format": {"options": replace(OPTIONS, format="webp")},
    "crf": {"options": replace(OPTIONS, crf=20)},
    "pingpong": {"options": replace(OPTIONS, pingpong=True)},
    "no sound": {"audio": None},
    "another sound": {"audio": replace(SOUND, waveform=-SOUND.waveform)},
    "another rate": {"audio": replace(SOUND, sample_rate=16000)},
    "another workflow": {"metadata": {"workflow": {"nodes": [1]}}},
    "no workflow": {"metadata": {}},
    "another name": {"name": "video/other"},
}


def key_of(**changes: Any) -> str:
    metadata = {"workflow": {"nodes": [], "scale": float("nan")}}
    wish = {"frames": torch.zeros(2, 4, 4, 3), "options": OPTIONS, "audio": SOUND, "metadata": metadata, "name": "clip"}
    return video_key(**{**wish, **changes})


@pytest.mark.parametrize("change", OTHERS)
def test_another_request_has_another_name(change: str) -> None:
    assert key_of(**OTHERS[change]) != key_of() == key_of()


def test_a_note_outlives_the_process_and_one_that_is_damaged_or_of_another_kind_is_none(tmp_path: Path) -> None:
    key, notes = key_of(), ConditioningCache(tmp_path, VIDEO_LIMITS)
    assert noted(notes, key) is None
    note(notes, key, VIDEO)
    assert noted(notes, key) == noted(ConditioningCache(tmp_path, VIDEO_LIMITS), key) == VIDEO
    assert noted(notes, key_of(name="other")) is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"clip_00001_", b"clip_00002_"))
    assert noted(ConditioningCache(tmp_path, VIDEO_LIMITS), key) is None
    notes.put(key, Encoded({}, ("one", "two")), 1.0)
    assert noted(notes, key) is None
