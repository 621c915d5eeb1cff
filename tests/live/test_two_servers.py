"""Two ComfyUI servers over one folder of engines: what one builds, the other finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, start_server
from i2v_tensorrt.tests.live.answers import file_names, run, text
from i2v_tensorrt.tests.live.conftest import filled_base
from i2v_tensorrt.tests.live.graphs import builder, clip, only
from i2v_tensorrt.tests.live.ids import BUILDER, CHECKPOINT, LOADER

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("onnxruntime")]


def built(server: ComfyServer) -> RunResult:
    """The engine of the picture's encoder, asked of one server."""
    prompt = {LOADER: clip("")[LOADER], BUILDER: builder(backend="onnxruntime")}
    return run(ComfyClient(server.url), only(prompt, LOADER, BUILDER))


def test_of_two_servers_that_ask_at_once_one_builds(
    host: ComfyHost, tiny_folder: Path, server_arguments: list[str], tmp_path: Path
) -> None:
    engines = tmp_path / "engines"
    engines.mkdir()
    with ExitStack() as stack:
        servers = []
        for name in ("one", "two"):
            base = filled_base(tmp_path / name, {CHECKPOINT: tiny_folder})
            (base / "models" / "i2v_engines").symlink_to(engines, target_is_directory=True)
            servers.append(stack.enter_context(start_server(host, base, server_arguments)))
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(built, servers))
    told = [text(result, BUILDER) for result in results]
    assert sorted("already there" in each for each in told) == [False, True], told
    assert sorted("built in" in each for each in told) == [False, True], told
    assert len([name for name in file_names(engines) if len(name) == 64]) == 1
    assert not any(name.startswith((".staging/", ".quarantine/")) for name in file_names(engines))
