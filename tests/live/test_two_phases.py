"""Motion at a small size, its latents enlarged by the core, and the last steps at the large one."""

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import failure, frames, movie, run
from i2v_tensorrt.tests.live.graphs import Prompt, changed, node
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, SAMPLER
from i2v_tensorrt.tests.live.test_families import small

LARGE, ENLARGED, SECOND = "40", "41", "42"
STEPS = 10


def two_phases(kind: str, picture: str, strength: float = 0.4, side: int = 128) -> Prompt:
    """The shipped workflow at 64x64, and once more at twice the size from its latents."""
    prompt = small(kind, picture, {SAMPLER: {"steps": STEPS}})
    large = {**prompt[CONDITIONING], "inputs": {**prompt[CONDITIONING]["inputs"], "width": 128, "height": 128}}
    size = {"width": side, "height": side, "crop": "disabled"}
    enlarged = node("LatentUpscale", samples=[SAMPLER, 0], upscale_method="bislerp", **size)
    links = {"conditioning": [LARGE, 0], "latents": [ENLARGED, 0], "strength": strength}
    again = {**prompt[SAMPLER], "inputs": {**prompt[SAMPLER]["inputs"], **links}}
    whole = {**prompt, LARGE: large, ENLARGED: enlarged, SECOND: again}
    return changed(whole, {DECODE: {"latents": [SECOND, 0]}})


@pytest.mark.parametrize("kind", ["svd", "wan21"])
def test_a_clip_is_finished_at_a_larger_size(client: ComfyClient, picture: str, kind: str) -> None:
    result = run(client, two_phases(kind, picture))
    clip = frames(client, result)
    assert clip.shape[1:3] == (128, 128) and clip.float().std() > 1
    told = [value for value, most in result.progress[SECOND] if most]
    assert len(set(told)) == round(0.4 * STEPS), "so many steps at the large size"
    other = movie(client, two_phases(kind, picture, strength=0.9))
    assert not torch.equal(clip, other)


def test_latents_of_another_size_and_a_strength_without_any_are_told(client: ComfyClient, picture: str) -> None:
    told = failure(client, two_phases("svd", picture, side=64))
    assert "Expected latents of 128x128 with 4 frames, as the conditioning is, found 64x64 with 4 frames" in told
    told = failure(client, small("svd", picture, {SAMPLER: {"strength": 0.5}}))
    assert "A strength below 1 is for latents to begin from, found 0.5 and none." in told
