"""Two ComfyUI servers over one folder of engines: what one builds, the other finds."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, link_pack, start_server
from i2v_tensorrt.tests.live.conftest import PACK
from i2v_tensorrt.tests.live.graphs import BUILDER, CHECKPOINT, LOADER, builder, clip, file_names, only, text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("onnxruntime")]


def built(server: ComfyServer) -> RunResult:
    """The engine of the picture's encoder, asked of one server."""
    prompt = {LOADER: clip("")[LOADER], BUILDER: builder(backend="onnxruntime")}
    return ComfyClient(server.url).run(only(prompt, LOADER, BUILDER))


def test_of_two_servers_that_ask_at_once_one_builds(
    host: ComfyHost, tiny_folder: Path, server_arguments: list[str], tmp_path: Path
) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            base = tmp_path / name
            link_pack(PACK, base)
            shutil.copytree(tiny_folder, base / "models" / "i2v" / CHECKPOINT)
            (base / "models" / "i2v_engines").symlink_to(engines, target_is_directory=True)
            servers.append(stack.enter_context(start_server(host, base, server_arguments)))
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(built, servers))
    assert [result.error for result in results] == [None, None]
    told = [text(result, BUILDER) for result in results]
    assert sorted("already there" in each for each in told) == [False, True], told
    assert sorted("built in" in each for each in told) == [False, True], told
    assert len([name for name in file_names(engines) if len(name) == 64]) == 1
    assert not any(name.startswith((".staging/", ".quarantine/")) for name in file_names(engines))
