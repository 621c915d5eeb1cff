"""The bundled model's frames through an engine are those of eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.pack_paths import BUNDLED, PICTURE
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.media.image import rgb
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.quality.similarity import frames_similarity
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip import decode_clip
from i2v_tensorrt.runtime.clip_plan import Denoising, plan_clip
from i2v_tensorrt.runtime.demo_model import demo_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ..helpers.reference_clip import Clip, ours
from ..helpers.toys import CPU

STEPS = 3


def frames_of(backend: str, folder: Path) -> torch.Tensor:
    demo = demo_model(BUNDLED)
    engines = EngineSet(open_model(BUNDLED), EngineStore(folder), EnginePolicy(backend, "fp32", "exact", "build"), CPU)
    request = ClipRequest(
        rgb(Image.open(PICTURE)), demo.prompts[0], "", demo.side, demo.side, demo.num_frames, demo.fps
    )
    clip = Clip(request, Denoising(1, demo.guidance_scale, SamplerSettings(STEPS)))
    latents = engines.model.to_latent(ours(engines, clip))
    frames = decode_clip(plan_clip(engines, request.size), latents, demo.num_frames, lambda *_: None)
    assert {engines.describe(name) for name in ("core", "vae_decoder")} == {f"{backend}, fp32 on cpu"}
    return frames


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("onnxruntime", marks=pytest.mark.slow),
        pytest.param("inductor", marks=pytest.mark.torture),  # which compiles for many minutes
    ],
)
def test_every_backend_gives_the_reference_frames(backend: str, tmp_path: Path) -> None:
    found = BACKENDS[backend].availability(CPU)
    if not found.ok:
        pytest.skip(found.sentence)
    similarity = frames_similarity(frames_of("eager", tmp_path), frames_of(backend, tmp_path))
    assert similarity["frames_psnr_worst_db"] > 80
