"""The number of devices on the Engine Loader, where there are no two GPUs: a sentence, and the clip of one device."""

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.errors import PromptRefusedError
from i2v_tensorrt.tests.live.answers import movie, run, text
from i2v_tensorrt.tests.live.graphs import Prompt
from i2v_tensorrt.tests.live.ids import ENGINES
from i2v_tensorrt.tests.live.test_families import small

pytestmark = pytest.mark.skipif(torch.cuda.device_count() > 1, reason="two GPUs are here")


def over(kind: str, picture: str, devices: str) -> Prompt:
    """The shipped workflow over so many devices."""
    return small(kind, picture, {ENGINES: {"devices": devices}})


@pytest.mark.parametrize("kind", ["svd", "wan21"])
def test_one_device_makes_the_clip_and_the_node_says_why(client: ComfyClient, picture: str, kind: str) -> None:
    result = run(client, over(kind, picture, "2"))
    assert "one device makes the clip." in text(result, ENGINES)
    assert torch.equal(movie(client, over(kind, picture, "2")), movie(client, over(kind, picture, "1")))


def test_another_number_is_refused(client: ComfyClient, picture: str) -> None:
    with pytest.raises(PromptRefusedError, match="devices: '3' not in"):
        run(client, over("svd", picture, "3"))
