"""One live ComfyUI for all tests of this folder, with the pack linked into it and a tiny checkpoint to run."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.benchmarks.live import Report
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, link_pack, start_server
from i2v_tensorrt.tests.live.answers import json_of
from i2v_tensorrt.tests.live.device import Device, device_of, flags, keeps_outputs, why_no_onnxruntime
from i2v_tensorrt.tests.live.graphs import gradient, png
from i2v_tensorrt.tests.live.ids import CHECKPOINT, DYNAMICRAFTERS, SVD, WANS

FIGURES = "I2VTRT_LIVE_FIGURES"
"""Names the file of figures, such as benchmarks/results/gpu/figures.json, in which the live tests are counted."""
HERE = Path(__file__).resolve().parent
PACK = HERE.parent.parent
# No outside host, no database file.
ARGUMENTS = ("--disable-api-nodes", "--database-url", "sqlite:///:memory:")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Writes how many live tests passed and failed, where a file is named for it."""
    path = os.environ.get(FIGURES)
    if path:
        Report(Path(path)).note(**live_figures(terminalreporter.stats))


def live_figures(stats: Mapping[str, Sequence[object]]) -> dict[str, int]:
    """The figures of pytest's lists by outcome: what could not be set up has failed too."""
    passed, failed, errors = (len(stats.get(name, ())) for name in ("passed", "failed", "error"))
    return {"live_passed": passed, "live_failed": failed + errors}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The networks here are tiny, and threads that spin while they wait only slow a busy machine down."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def base_directory(
    host: ComfyHost,
    tmp_path_factory: pytest.TempPathFactory,
    tiny_folder: Path,
    tiny_svd_folder: Path,
    tiny_wan: Callable[[str], Path],
    tiny_dynamicrafter: Callable[[str], Path],
) -> Path:
    """Models, custom nodes, input and output of the servers under test."""
    wans = {name: tiny_wan(kind) for kind, name in WANS.items()}
    dynamicrafters = {name: tiny_dynamicrafter(kind) for kind, name in DYNAMICRAFTERS.items()}
    models = {CHECKPOINT: tiny_folder, SVD: tiny_svd_folder, **wans, **dynamicrafters}
    return filled_base(tmp_path_factory.mktemp("comfyui"), models, "probe_nodes.py")


def filled_base(base: Path, models: Mapping[str, Path], *probes: str) -> Path:
    """The folder of a server, with the pack, copies of the models and those files of nodes for the tests."""
    link_pack(PACK, base)
    for probe in probes:
        link_pack(HERE / probe, base, probe)
    for name, folder in models.items():
        shutil.copytree(folder, base / "models" / "i2v" / name)
    return base


@pytest.fixture(scope="session")
def server_arguments() -> list[str]:
    """How the servers are started; their device is the GPU where this Python sees one."""
    return [*ARGUMENTS, "--preview-method", "latent2rgb", *device_arguments()]


@pytest.fixture(scope="session")
def server(host: ComfyHost, base_directory: Path, server_arguments: list[str]) -> Iterator[ComfyServer]:
    """The server that most tests share."""
    with start_server(host, base_directory, server_arguments) as running:
        yield running


@pytest.fixture(scope="session")
def client(server: ComfyServer) -> ComfyClient:
    return ComfyClient(server.url)


@pytest.fixture(scope="session")
def nodes(client: ComfyClient) -> dict[str, dict[str, Any]]:
    """The pack's entries in /object_info."""
    module = "custom_nodes.I2V-TensorRT"
    return {name: info for name, info in client.object_info().items() if info["python_module"] == module}


@pytest.fixture(scope="session")
def device(server: ComfyServer) -> Device:
    return device_of(server.url)


@pytest.fixture(scope="session")
def onnxruntime(client: ComfyClient) -> None:
    """Skips where ONNX Runtime does not serve the device: the pack does not require it."""
    reason = why_no_onnxruntime(client)
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="session")
def builder_backend(device: Device, request: pytest.FixtureRequest) -> None:
    """Skips where no backend that `auto` takes builds engines: on a CPU that is ONNX Runtime alone."""
    if device.kind == "cpu":
        request.getfixturevalue("onnxruntime")


@pytest.fixture(scope="session")
def kept_outputs() -> None:
    """Skips where the servers keep nothing between two prompts."""
    if not keeps_outputs():
        pytest.skip("With --cache-none ComfyUI keeps no node's output, and lets go of its model at once.")


@pytest.fixture(scope="session")
def version(server: ComfyServer) -> tuple[int, ...]:
    """The server's version as numbers: features come and go with it."""
    system = json_of(f"{server.url}/system_stats")["system"]
    return tuple(int(part) for part in system["comfyui_version"].split("."))


@pytest.fixture(scope="session")
def picture(client: ComfyClient) -> str:
    """The name of a small picture in the server's input folder."""
    return client.upload_image(png(gradient()), "gradient.png")


@pytest.fixture(scope="session")
def output(base_directory: Path) -> Path:
    return base_directory / "output"


def device_arguments() -> list[str]:
    """On a GPU as people start it; a CPU is taken by a flag alone, and there the cache heeds no memory pressure."""
    import torch

    if torch.cuda.is_available():
        return flags()
    cache = [] if any(flag.startswith("--cache-") for flag in flags()) else ["--cache-classic"]
    return ["--cpu", *cache, *flags()]
