"""Two ComfyUI servers over one folder: engines that one builds the other finds, and no file is written over."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import av
import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, start_server
from i2v_tensorrt.tests.live.answers import file_names, run, text
from i2v_tensorrt.tests.live.conftest import filled_base
from i2v_tensorrt.tests.live.graphs import builder, clip, node, only, save
from i2v_tensorrt.tests.live.ids import BUILDER, CHECKPOINT, LOADER, SAVE

pytestmark = pytest.mark.slow
TIMES = 12


def built(server: ComfyServer) -> RunResult:
    """The engine of the picture's encoder, asked of one server."""
    prompt = {LOADER: clip("")[LOADER], BUILDER: builder(backend="onnxruntime")}
    return run(ComfyClient(server.url), only(prompt, LOADER, BUILDER))


@pytest.mark.usefixtures("onnxruntime")
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


def test_two_servers_that_save_at_once_write_over_nothing(
    host: ComfyHost, server_arguments: list[str], tmp_path: Path
) -> None:
    """As on a machine with a server for each GPU: ComfyUI's own nodes take the same name for two pictures there."""
    output = tmp_path / "output"
    with ExitStack() as stack:
        clients = []
        for name in ("one", "two"):
            arguments = [*server_arguments, "--output-directory", str(output)]
            server = stack.enter_context(start_server(host, filled_base(tmp_path / name, {}), arguments))
            clients.append(ComfyClient(server.url))
        with ThreadPoolExecutor(2) as pool:
            told = [name for names in pool.map(saves, clients, (8, 16)) for name in names]
    assert sorted(told) == [f"shared/clip_{number:05}_.mp4" for number in range(1, 2 * TIMES + 1)]
    sizes = Counter(video_size(output / name) for name in told)
    assert sizes == {(64, 8): TIMES, (64, 16): TIMES}


def saves(client: ComfyClient, height: int) -> list[str]:
    """What a server names the videos of that height that it saves one after the other."""
    names = []
    for color in range(TIMES):
        frames = node("EmptyImage", width=64, height=height, batch_size=1, color=color)
        saver = save("", frames=["1", 0], filename_prefix="shared/clip")[SAVE]
        names.append(text(run(client, {"1": frames, SAVE: saver}), SAVE).splitlines()[0])
    return names


def video_size(path: Path) -> tuple[int, int]:
    with av.open(path) as video:
        stream = video.streams.video[0]
        return stream.width, stream.height
