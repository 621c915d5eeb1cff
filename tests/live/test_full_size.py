"""DynamiCrafter at its published size, converted from one file under its publishers' names, in a live ComfyUI."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.pipeline.convert.convert import convert
from i2v_tensorrt.pipeline.dummies.full_size import write_full_checkpoint
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, start_server
from i2v_tensorrt.tests.helpers.published_files import write_published_dynamicrafter
from i2v_tensorrt.tests.live.answers import free, movie, run, text
from i2v_tensorrt.tests.live.conftest import filled_base
from i2v_tensorrt.tests.live.graphs import LOSSLESS, Prompt, changed, gradient, png, published
from i2v_tensorrt.tests.live.ids import CONDITIONING, ENGINES, LOADER, PICTURE, SAMPLER

FULL, CONVERTED = "dynamicrafter-random", "dynamicrafter-converted"
BASE = 0.3
"""The last value of the published scales, by which the 1024 checkpoint is told."""


@pytest.fixture(scope="module")
def converted(host: ComfyHost, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a server with a checkpoint of 5 GB in its own folder and as it is converted from one file."""
    base = filled_base(tmp_path_factory.mktemp("full"), {})
    models = base / "models" / "i2v"
    models.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder = write_full_checkpoint(models / FULL, device, 0)
    file = write_published_dynamicrafter(folder, base / "dynamicrafter_1024.safetensors", BASE)
    assert file.stat().st_size > 3_000_000_000
    convert([file], [folder], models / CONVERTED, None)
    file.unlink()
    return base


def small(picture: str, checkpoint: str, **changes: object) -> Prompt:
    """The shipped workflow with that checkpoint, on a small plane, in eager PyTorch."""
    settings = {
        PICTURE: {"image": picture},
        LOADER: {"checkpoint": checkpoint},
        ENGINES: {"precision": "auto", "backend": "eager"},
        CONDITIONING: {"width": 64, "height": 64},
        SAMPLER: {"steps": 2, **changes},
    }
    return changed(published(workflow_names.DYNAMICRAFTER), settings, LOSSLESS)


@pytest.mark.torture
def test_the_converted_checkpoint_gives_the_same_frames(
    host: ComfyHost, converted: Path, server_arguments: list[str]
) -> None:
    """Bit for bit; one model is let go of before the other, for a machine may not hold both."""
    with start_server(host, converted, server_arguments) as server:
        client = ComfyClient(server.url, timeout_s=600)
        picture = client.upload_image(png(gradient()), "gradient.png")
        prompt = small(picture, CONVERTED)
        assert text(run(client, prompt), LOADER).startswith("dynamicrafter")
        found = movie(client, prompt)
        free(client, free_memory=True)
        assert torch.equal(found, movie(client, small(picture, FULL)))
        assert found.float().std() > 1
        assert not torch.equal(found, movie(client, small(picture, FULL, seed=2))), "a control"
