"""Classifier-free guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    import torch

GuidanceScale = Union[float, "torch.Tensor"]
"""How far to go from the unconditional to the conditional prediction: one number, or float32 [frames, 1, 1, 1]."""


def guide(prediction: torch.Tensor, guidance_scale: GuidanceScale) -> torch.Tensor:
    """Classifier-free guidance over [branches, frames, ...], float32 [frames, ...]; one branch stays as it is.

    Ho and Salimans 2022, arXiv:2207.12598.
    """
    if len(prediction) == 1:
        return prediction[0].float()
    unconditional, conditional = prediction.float()
    return unconditional + guidance_scale * (conditional - unconditional)
