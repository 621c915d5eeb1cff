"""The pack installed twice, as by the registry and by hand: it works, and the log says so once."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, link_pack, start_server
from i2v_tensorrt.tests.live.answers import run
from i2v_tensorrt.tests.live.conftest import PACK, filled_base
from i2v_tensorrt.tests.live.graphs import clip, gradient, png
from i2v_tensorrt.tests.live.ids import CHECKPOINT


@pytest.mark.slow
def test_two_copies_make_a_clip_and_are_told_once(
    host: ComfyHost, tiny_folder: Path, server_arguments: list[str], tmp_path: Path
) -> None:
    base = filled_base(tmp_path, {CHECKPOINT: tiny_folder})
    link_pack(PACK, base, "i2v-tensorrt")
    with start_server(host, base, server_arguments) as server:
        client = ComfyClient(server.url)
        picture = client.upload_image(png(gradient()), "gradient.png")
        run(client, clip(picture))
        log = server.log()
    warnings = [line for line in log.splitlines() if "I2V TensorRT is installed twice" in line]
    assert len(warnings) == 1, log
    assert "I2V-TensorRT" in warnings[0] and "i2v-tensorrt" in warnings[0]
