"""The pack in a live ComfyUI."""

from i2v_tensorrt.jobs.comfy_client import ComfyClient
from i2v_tensorrt.jobs.comfy_host import ComfyServer


def test_no_import_failed(server: ComfyServer, client: ComfyClient) -> None:
    log = server.log()
    assert "Import times for custom nodes" in log
    assert "I2V-TensorRT" in log
    assert "IMPORT FAILED" not in log
    assert "Error while calling comfy_entrypoint" not in log


def test_the_pack_brings_its_nodes(client: ComfyClient) -> None:
    module = "custom_nodes.I2V-TensorRT"
    ours = {name for name, node in client.object_info().items() if node["python_module"] == module}
    assert ours
    assert all(name.startswith("I2VTRT_") for name in ours)
