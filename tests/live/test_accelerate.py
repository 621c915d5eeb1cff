"""I2V Accelerate in a live ComfyUI: what it says, and clips that owe nothing to the ones before them."""

import itertools
from typing import Any

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.helpers.counts import Evidence, counted
from i2v_tensorrt.tests.live.answers import failure, frames, free, interrupt_at, lines, movie, ran, run
from i2v_tensorrt.tests.live.graphs import LOSSLESS, Changes, Prompt, changed, clip, gradient, model_from, node, png
from i2v_tensorrt.tests.live.ids import CONDITIONING, LOADER, SAMPLER
from i2v_tensorrt.tests.live.texts import run_and_hear

ACCELERATE = "40"
STEPS = 24
ENDLESS: Changes = {CONDITIONING: {"width": 256, "height": 256, "num_frames": 16}, SAMPLER: {"steps": 500}}
"""A clip that does not end before an interrupt comes, not on a busy machine either, though most calls are left out."""
FRESH = itertools.count(5000)
"""Seeds that no prompt has had: ComfyUI answers one that it knows from its cache."""
ALL_AT_ONCE = {"preset": "fast", "step_cache": "change", "threshold": 0.2, "deep_interval": 2}
"""Every accelerator that holds state between steps."""


@pytest.fixture(scope="module")
def picture(client: ComfyClient) -> str:
    return client.upload_image(png(gradient(96, 64)), "accelerate.png")


def preview(name: str) -> dict[str, Any]:
    """A node that asks for another one's first output."""
    return node("PreviewAny", source=[name, 0])


def accelerated(picture: str, seed: int, **inputs: Any) -> Prompt:
    """The small clip with the node between model and stages."""
    prompt = changed(clip(picture, {SAMPLER: {"steps": STEPS, "seed": seed}}), LOSSLESS)
    return model_from({**prompt, ACCELERATE: node("I2VTRT_Accelerate", model=[LOADER, 0], **inputs)}, ACCELERATE)


def test_the_nodes_say_what_is_called_and_at_what_quality(client: ComfyClient, picture: str) -> None:
    result, heard = run_and_hear(client, accelerated(picture, next(FRESH), preset="near"))
    assert lines(result, ACCELERATE)[0] == "near" and heard[ACCELERATE]
    told = lines(result, SAMPLER)
    (planned,) = [line for line in told if line.startswith("near: ")]
    made = int(planned.split()[1])
    assert f"of {2 * STEPS} calls" in planned and made < 2 * STEPS
    assert any(line.startswith(f"{made} of {2 * STEPS} calls made, at steps 1-") for line in told)
    assert any("uality" in line or "dB" in line for line in told)


def test_exact_changes_nothing(client: ComfyClient, picture: str) -> None:
    seed = next(FRESH)
    plain = movie(client, changed(clip(picture, {SAMPLER: {"steps": STEPS, "seed": seed}}), LOSSLESS))
    assert torch.equal(movie(client, accelerated(picture, seed, preset="exact")), plain)
    assert not torch.equal(movie(client, accelerated(picture, seed, preset="real time")), plain)


def test_a_cache_without_ratios_says_so(client: ComfyClient, picture: str) -> None:
    result = run(client, accelerated(picture, next(FRESH), preset="exact", step_cache="magnitudes"))
    assert "No ratios of this model are kept" in lines(result, ACCELERATE)[-1]


def test_a_model_that_is_none_is_refused(client: ComfyClient) -> None:
    error = failure(client, {"1": node("I2VTRT_Accelerate", model="none", preset="near"), "2": preview("1")})
    assert "Expected model over a link" in error


@counted(3, 50, slow=True)
def test_interrupts_and_other_sizes_leave_nothing_behind(
    client: ComfyClient, picture: str, count: int, evidence: Evidence
) -> None:
    first = accelerated(picture, next(FRESH), **ALL_AT_ONCE)
    fresh = movie(client, first)
    for number in range(count):
        size = {"width": 64 + 32 * (number % 2), "height": 64, "num_frames": 2 + number % 2}
        run(client, changed(accelerated(picture, next(FRESH), **ALL_AT_ONCE), {CONDITIONING: size}))
        stopped = client.run(
            changed(accelerated(picture, next(FRESH), **ALL_AT_ONCE), ENDLESS), interrupt_at(client, SAMPLER, 2)
        )
        assert stopped.status == "interrupted"
        free(client, unload_models=number % 2 == 0)  # ComfyUI would answer the first clip from its cache of outputs
        result = client.run(first)
        assert SAMPLER in ran(result) and torch.equal(frames(client, result), fresh)
    evidence("accelerated clips after interrupts and sizes", count, "each is a fresh one, bit for bit")
