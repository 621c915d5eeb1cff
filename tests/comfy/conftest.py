"""One live ComfyUI for all tests of this folder, with the pack linked into it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from i2v_tensorrt.jobs.comfy_client import ComfyClient
from i2v_tensorrt.jobs.comfy_host import ComfyServer, find_comfyui, link_pack, not_found_reason, start_server

HERE = Path(__file__).resolve().parent
PACK = HERE.parent.parent
# No outside host, no database file, and outputs cached whatever the memory pressure.
ARGUMENTS = ("--disable-api-nodes", "--cache-classic", "--database-url", "sqlite:///:memory:")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything in this folder, before `-m` selects."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("comfy")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """A server with a base directory of its own; its device is the GPU where this Python sees one."""
    host = find_comfyui()
    if host is None:
        pytest.skip(not_found_reason())
    base_directory = tmp_path_factory.mktemp("comfyui")
    link_pack(PACK, base_directory)
    link_pack(HERE / "probe_nodes.py", base_directory, "probe_nodes.py")
    with start_server(host, base_directory, [*ARGUMENTS, *device_arguments()]) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ComfyServer) -> ComfyClient:
    """A client of the server."""
    return ComfyClient(server.url)


def device_arguments() -> list[str]:
    """ComfyUI does not fall back to the CPU by itself."""
    import torch

    return [] if torch.cuda.is_available() else ["--cpu"]
