"""What caches on users' disks are named by: the names stay, so that nothing is encoded or sampled a second time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import Guidance, NetworkSpec, Scope, TensorSpec
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.conditioning import Conditioning, conditioning_key
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.models.model_networks import Component
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising, plan_clip, plan_sampling
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.result_cache import result_key

from ...helpers.toys import CPU, TARGET

REQUEST = ClipRequest(Image.new("RGB", (70, 50), (1, 2, 3)), "a boat", "blurry", 64, 72, 3, 8)
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
    assert conditioning_key(model, REQUEST, "fp32") == CONDITIONING_KEY
    engines = Set(model, EngineStore(tmp_path), EnginePolicy("eager", "fp32"), CPU)
    tensors = {"context": torch.arange(6.0).reshape(2, 3), "image_cond": torch.ones(1, 2, dtype=torch.float64)}
    conditioning = Conditioning("i2vgen_xl", 64, 72, 3, 8, tensors, (), "encoded", 1.0)
    clip = plan_clip(engines, conditioning.size)
    for scale, key in RESULT_KEYS.items():
        plan = plan_sampling(clip, Denoising(5, scale, SamplerSettings(2, eta=0.5), 0.5, 2.0))
        assert result_key(plan, conditioning) == key
