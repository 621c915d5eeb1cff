"""Guidance branches: from the table of tensors, batched in one call or run apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.spec import Guidance, TensorSpec
from i2v_tensorrt.pipeline.denoising.guidance import (
    BOTH,
    CONDITIONAL,
    Branches,
    branch_inputs,
    branch_values,
    branches_of,
    guide,
    rescale_of,
)
from i2v_tensorrt.pipeline.models.registry import open_model

SPECS = (
    TensorSpec("text", ("batch", 3), guidance=Guidance.PER_BRANCH),
    TensorSpec("seen", (1, 3), guidance=Guidance.PER_BRANCH),
    TensorSpec("sample", ("batch", 3)),
    TensorSpec("index", (1, "frames")),
)
VALUES = {
    "text": torch.arange(6.0).reshape(2, 3),
    "seen": torch.arange(6.0, 12.0).reshape(2, 3),
    "sample": torch.arange(3.0).reshape(1, 3),
    "index": torch.arange(4.0).reshape(1, 4),
    "unknown": torch.zeros(7),
}


def test_a_scale_of_one_or_less_takes_the_conditional_branch_alone() -> None:
    assert [branches_of(scale) for scale in (0.0, 1.0, 1.001, 9.0)] == [CONDITIONAL, CONDITIONAL, BOTH, BOTH]


def test_each_branch_sees_its_own_rows_and_what_is_shared() -> None:
    for branch in BOTH:
        found = branch_inputs(SPECS, VALUES, Branches(branch, branch + 1))
        assert torch.equal(found["unknown"], VALUES["unknown"]), "for the runner to refuse"
        for name in ("text", "seen"):
            assert torch.equal(found[name], VALUES[name][branch : branch + 1])
        for name in ("sample", "index"):
            assert torch.equal(found[name], VALUES[name])


def test_a_batch_of_both_is_views_and_comes_back() -> None:
    found = branch_inputs(SPECS, VALUES, BOTH)
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {"text": (2, 3), "seen": (2, 3), "sample": (2, 3), "index": (1, 4), "unknown": (7,)}
    assert all(value.data_ptr() == VALUES[name].data_ptr() for name, value in found.items()), "nothing is copied"
    back = branch_values(SPECS, found)
    assert all(torch.equal(value, VALUES[name]) for name, value in back.items())


KINDS = ("i2vgen_xl", "svd", "wan21", "a14b", "ti2v", "dynamicrafter")


@pytest.mark.parametrize("kind", KINDS)
def test_branches_run_apart_predict_as_in_one_batch(
    tiny_folder: Path, tiny_svd_folder: Path, tiny_wan: Any, tiny_dynamicrafter: Any, kind: str
) -> None:
    folders = {"i2vgen_xl": tiny_folder, "svd": tiny_svd_folder, "dynamicrafter": tiny_dynamicrafter("512")}
    model = open_model(folders[kind] if kind in folders else tiny_wan(kind))
    spec, network = model.components[model.denoiser].spec, model.load(model.denoiser, "fp32")
    generator = torch.Generator().manual_seed(0)
    x, t = model.noise(64, 64, 5, generator), torch.tensor(0.5)
    frames, _, height, width = x.shape
    sizes = {"batch": 2, "frames": frames, "latent_height": height, "latent_width": width}
    shapes = {tensor.name: tensor.shape_at(sizes) for tensor in spec.inputs}
    both = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    stepwise = {"sample", "timestep"}
    clip = {name: value for name, value in branch_values(spec.inputs, both).items() if name not in stepwise}
    tensors = {**clip, "first_frame": x[:1]} if kind == "ti2v" else clip
    values = model.prepare_input(x, t, tensors)

    def predicted(branches: Branches) -> torch.Tensor:
        with torch.inference_mode():
            return network(**branch_inputs(spec.inputs, values, branches))

    batched, apart = predicted(BOTH), [predicted(Branches(branch, branch + 1)) for branch in BOTH]
    assert (torch.cat(apart) - batched).abs().max() <= 1e-5 * batched.abs().max()
    assert not torch.allclose(apart[0], apart[1], rtol=1e-3), "a control: the branches differ"


def test_one_branch_is_not_guided_and_each_frame_is_by_its_own_scale() -> None:
    prediction = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(guide(prediction[1:], 9.0), prediction[1])
    assert torch.equal(guide(prediction, 0.0), prediction[0])
    assert torch.allclose(guide(prediction, 1.0), prediction[1])
    prediction = prediction[..., None, None].expand(-1, -1, -1, 8, 8)
    rising = guide(prediction, torch.tensor([1.0, 2.0, 3.0]).reshape(-1, 1, 1, 1))
    for frame, scale in enumerate((1.0, 2.0, 3.0)):
        assert torch.equal(rising[frame], guide(prediction, scale)[frame])


def test_a_share_of_the_guided_prediction_keeps_the_spread_of_the_conditional_one() -> None:
    prediction = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    plain, spread = guide(prediction, 9.0), prediction[1].std()
    assert guide(prediction, 9.0, 1.0).std() == pytest.approx(float(spread), rel=1e-5)
    half = guide(prediction, 9.0, 0.5)
    assert torch.allclose(half, 0.5 * plain * spread / plain.std() + 0.5 * plain, rtol=1e-5, atol=1e-6)
    assert torch.equal(guide(prediction[1:], 9.0, 0.5), prediction[1]), "one branch is not guided"
    assert (rescale_of({"guidance_rescale": 0.7}), rescale_of({})) == (0.7, 0.0)
