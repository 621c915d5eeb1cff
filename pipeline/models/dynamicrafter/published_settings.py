"""What the published checkpoints differ in beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KINDS = ("256", "512", "1024", "interp")
"""By the side of the published clips; the last goes from a first picture to a last one, at 512."""
TOONCRAFTER = "tooncrafter"
"""A kind that its tensors tell from all others."""
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
FROM_NOISE = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "guidance_rescale": 0.7,
}
KIND_SCHEDULER: Mapping[str, Mapping[str, Any]] = {
    "256": {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1},
    "512": {**FROM_NOISE, "dynamic_rescale_base": 0.7},
    "1024": {**FROM_NOISE, "dynamic_rescale_base": 0.3},
    **dict.fromkeys(("interp", TOONCRAFTER), {**FROM_NOISE, "dynamic_rescale_base": 0.7}),
}


def index_of(kind: str) -> dict[str, Any]:
    """Content of the model_index.json of one of the kinds, beside its parts."""
    index: dict[str, Any] = {"_class_name": "DynamiCrafterPipeline"}
    return {**index, "interpolates": True} if kind in ("interp", TOONCRAFTER) else index
