"""The pack in a live ComfyUI."""

import re
from pathlib import Path

from i2v_tensorrt.common.pack_paths import PACK, PICTURE
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, link_pack, start_server

CORES_OWN = re.compile(r"IMPORT FAILED: nodes_\w+\.py$", re.MULTILINE)
"""A file of the core's extra nodes that lacks a package."""


def test_no_import_failed(server: ComfyServer, client: ComfyClient) -> None:
    log = server.log()
    assert "Import times for custom nodes" in log
    assert "I2V-TensorRT" in log
    assert "IMPORT FAILED" not in CORES_OWN.sub("", log)
    assert "Error while calling comfy_entrypoint" not in log


def test_the_picture_of_the_workflows_is_among_the_inputs(client: ComfyClient, base_directory: Path) -> None:
    assert (base_directory / "input" / PICTURE.name).read_bytes() == PICTURE.read_bytes()
    assert PICTURE.name in client.object_info()["LoadImage"]["input"]["required"]["image"][0]


def test_a_picture_of_the_user_s_own_by_that_name_stays(
    host: ComfyHost, server_arguments: list[str], tmp_path: Path
) -> None:
    link_pack(PACK, tmp_path)
    place = tmp_path / "input" / PICTURE.name
    place.parent.mkdir()
    place.write_bytes(b"the user's own")
    with start_server(host, tmp_path, server_arguments) as server:
        assert any(name.startswith("I2VTRT_") for name in ComfyClient(server.url).object_info())
    assert place.read_bytes() == b"the user's own"
