"""Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598): its branches, their inputs, and their sum.

A tensor that differs between the branches holds them along its first axis, the unconditional one first; one that they
share has a first axis of 1, unless it has no axis for the batch at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Union

from ...common.spec import Guidance, TensorSpec

if TYPE_CHECKING:
    import torch

GuidanceScale = Union[float, "torch.Tensor"]
"""Factor of the step from the unconditional to the conditional prediction: one number, or float32 [frames, 1, 1, 1]."""

Branches = range
"""Neighbouring guidance branches: 0 is the unconditional one, 1 the conditional one."""

BOTH = Branches(2)
UNCONDITIONAL = Branches(1)
CONDITIONAL = Branches(1, 2)


def branches_of(guidance_scale: float) -> Branches:
    """The branches that a guidance scale takes: up to 1 the conditional one does alone."""
    return BOTH if guidance_scale > 1 else CONDITIONAL


def branch_inputs(
    specs: Iterable[TensorSpec], values: Mapping[str, torch.Tensor], branches: Branches
) -> dict[str, torch.Tensor]:
    """The inputs that run these branches in one call of a network, as views of `values`.

    All branches in one call are a batch; a call for each branch is the same work apart. A tensor that the network does
    not know is passed on unchanged; a missing tensor stays missing, and the runner refuses it.
    """
    known = {spec.name: spec for spec in specs}
    return {name: _rows(known[name], value, branches) if name in known else value for name, value in values.items()}


def branch_values(specs: Iterable[TensorSpec], outputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Inverse of `branch_inputs` for both branches: a network's outputs, with shared values held once."""
    return {spec.name: outputs[spec.name][:1] if _is_repeated(spec) else outputs[spec.name] for spec in specs}


def guide(prediction: torch.Tensor, guidance_scale: GuidanceScale, rescale: float = 0.0) -> torch.Tensor:
    """The guided prediction, float32 [frames, ...], of [branches, frames, ...]; one branch stays as it is.

    A share `rescale` of it is given the standard deviation of the conditional prediction, over the whole clip, against
    colours that guidance makes too strong (Lin et al. 2023, arXiv:2305.08891).
    """
    if len(prediction) == 1:
        return prediction[0].float()
    unconditional, conditional = prediction.float()
    guided = unconditional + guidance_scale * (conditional - unconditional)
    if not rescale:
        return guided
    return rescale * guided * (conditional.std() / guided.std()) + (1 - rescale) * guided


def rescale_of(scheduler_config: Mapping[str, Any]) -> float:
    """The share that a checkpoint's scheduler configuration has `guide` rescale: 0 unless it names one."""
    return float(scheduler_config.get("guidance_rescale", 0.0))


def _rows(spec: TensorSpec, value: torch.Tensor, branches: Branches) -> torch.Tensor:
    if spec.guidance is Guidance.PER_BRANCH:
        return value[branches.start : branches.stop]
    return value.expand(len(branches), *value.shape[1:]) if _is_repeated(spec) else value


def _is_repeated(spec: TensorSpec) -> bool:
    """Whether every branch of a batch has a copy of the same values."""
    return spec.guidance is Guidance.SHARED and spec.dims[:1] == ("batch",)
