"""The frames that the shipped workflows make, by a ComfyUI of this machine, kept as files."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common import workflow_names as names
from ...common.errors import InputError
from ...common.pack_paths import PACK
from ...remote.comfyui.client import ComfyClient
from ...remote.comfyui.messages import RunResult
from ...remote.comfyui.server import find_comfyui, link_pack, not_found_reason, start_server
from ..environment import say

if TYPE_CHECKING:
    from PIL.Image import Image

ARGUMENTS = ("--cpu", "--disable-api-nodes", "--database-url", "sqlite:///:memory:")
RUN_S = 1800
VIDEOS = (".mp4", ".webm", ".mkv")

RUNNABLE = (
    names.QUICK_START,
    names.TWO_PROMPTS,
    names.SMOOTHER,
    names.TWO_PHASES,
    names.ONNX,
    names.MIXED,
    names.LOW_MEMORY,
    names.COMPARE,
)
"""Workflows that run on the bundled model and make frames."""

EDGES_FILE = "edges.onnx"
EDGES = """<ir_version: 8, opset_import: ["" : 18]>
net (float[n, 3, h, w] x) => (float[n, 3, h, w] y) {
  k = Constant<value = float[2, 1, 3, 3] {
    -1., 0., 1., -2., 0., 2., -1., 0., 1., -1., -2., -1., 0., 0., 0., 1., 2., 1.}> ()
  channels = Constant<value = int64[1] {1}> ()
  one = Constant<value = float {1.0}> ()
  zero = Constant<value = float {0.0}> ()
  ink = Constant<value = float {1.6}> ()
  grey = ReduceMean (x, channels)
  pads = Constant<value = int64[8] {0, 0, 1, 1, 0, 0, 1, 1}> ()
  wide = Pad<mode = "edge"> (grey, pads)
  slopes = Conv (wide, k)
  steep = Abs (slopes)
  both = ReduceSum (steep, channels)
  dark = Mul (both, ink)
  most = Clip (dark, zero, one)
  light = Sub (one, most)
  y = Concat<axis = 1> (light, light, light)
}"""
"""A network that draws the edges of a picture, for the workflow whose own network has to be downloaded."""


def make_clips(folder: Path) -> None:
    """Runs each workflow whose frames are not in the folder, and keeps them there as FOLDER/NAME/NUMBER.png.

    Raises InputError when there is no ComfyUI or a workflow fails, and ServerStartError.
    """
    missing = [name for name in RUNNABLE if not (folder / name).is_dir()]
    if not missing:
        return
    host = find_comfyui()
    if host is None:
        raise InputError(f"Expected a ComfyUI to run the workflows, {not_found_reason()}.")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as base:
        link_pack(PACK, Path(base))
        _write_edges(Path(base) / "models" / "onnx" / EDGES_FILE)
        with start_server(host, Path(base), ARGUMENTS) as server:
            client = ComfyClient(server.url)
            for name in missing:
                say(f"running {name}")
                _keep(_made(client, name), folder / name)


def read_clip(folder: Path, name: str) -> list[Image]:
    """The kept frames of a workflow, in order."""
    from PIL import Image

    return [Image.open(path).convert("RGB") for path in sorted((folder / name).glob("*.png"))]


def _made(client: ComfyClient, name: str) -> list[Image]:
    """The frames of the video that a workflow saves; raises InputError when it fails."""
    prompt: dict[str, dict[str, Any]] = json.loads(names.api_workflow(name).read_text("utf-8"))
    for node in prompt.values():
        if node["class_type"] == "I2VTRT_OnnxPicture":
            node["inputs"]["file"] = EDGES_FILE
    result = client.run(prompt, timeout_s=RUN_S)
    if result.status != "success":
        raise InputError(f"Expected {name} to run, found {result.status}: {result.error}")
    (video,) = [file for file in _files(result) if file["filename"].endswith(VIDEOS)]
    return _frames(client.view(video["filename"], video["subfolder"], video["type"]))


def _files(result: RunResult) -> Iterator[dict[str, str]]:
    for output in result.outputs.values():
        for files in output.values():
            yield from (file for file in files if isinstance(file, dict) and "filename" in file)


def _frames(video: bytes) -> list[Image]:
    import av

    with av.open(io.BytesIO(video)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def _keep(frames: list[Image], folder: Path) -> None:
    """Written whole: the folder has its name when all frames are in it."""
    started = folder.with_name(f"{folder.name}.part")
    started.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        frame.save(started / f"{number:03}.png")
    started.rename(folder)


def _write_edges(path: Path) -> None:
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save_model(onnx.parser.parse_model(EDGES), str(path))
