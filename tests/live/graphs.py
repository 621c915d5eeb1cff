"""The prompts that the live tests post, and how they read what a node answered."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import torch
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult

Prompt = dict[str, dict[str, Any]]

PUBLISHED = Path(__file__).resolve().parents[2] / "workflows" / "api"
CHECKPOINT = "tiny-random"
SVD = "tiny-svd"
WANS = {"wan21": "tiny-wan21", "a14b": "tiny-wan22", "ti2v": "tiny-ti2v"}
"""The tiny Wans by their kind."""
# Node ids of workflows/api/image_to_video.json, which the prompts made here keep.
PICTURE, LOADER, ENGINES, CONDITIONING, SAMPLER, DECODE, SAVE = "1234567"
BUILDER = "8"
SMALL = {
    LOADER: {"checkpoint": CHECKPOINT},
    CONDITIONING: {"width": 64, "height": 64, "num_frames": 4, "fps": 8},
    SAMPLER: {"steps": 2},
}
"""What makes a published workflow small: the checkpoint, the sizes and the steps, and nothing else."""


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def published(name: str) -> Prompt:
    """A workflow as it ships."""
    return json.loads((PUBLISHED / f"{name}.json").read_text("utf-8"))


def changed(prompt: Prompt, *changes: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """The prompt with other inputs, by node id; an input set to None is left out."""
    copy = json.loads(json.dumps(prompt))
    for change in changes:
        for name, inputs in change.items():
            copy[name]["inputs"].update(inputs)
            copy[name]["inputs"] = {key: value for key, value in copy[name]["inputs"].items() if value is not None}
    return copy


def clip(picture: str, *changes: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """The small published graph without its Engine Loader: everything in eager PyTorch."""
    prompt = published("image_to_video")
    del prompt[ENGINES]
    eager = {name: {"model": [LOADER, 0]} for name in (CONDITIONING, SAMPLER, DECODE)}
    return changed(prompt, eager, SMALL, {PICTURE: {"image": picture}}, *changes)


def only(prompt: Prompt, *names: str) -> Prompt:
    """Those nodes of the prompt, and a preview that asks for the last one's first output."""
    return {name: prompt[name] for name in names} | {"9": node("PreviewAny", source=[names[-1], 0])}


def encoding(picture: str, *changes: Mapping[str, Mapping[str, Any]]) -> Prompt:
    """`clip` up to the conditioning."""
    return only(clip(picture, *changes), PICTURE, LOADER, CONDITIONING)


def builder(**inputs: Any) -> dict[str, Any]:
    """An Engine Builder behind the Model Loader, at the size of `SMALL`."""
    settings = {"component": "image_encoder", "shape_policy": "exact", "width": 64, "height": 64, "num_frames": 4}
    engine = {"precision": "auto", "backend": "auto", "force": False}
    return node("I2VTRT_EngineBuilder", model=[LOADER, 0], **{**settings, **engine, **inputs})


def save(picture: str, **inputs: Any) -> Prompt:
    """A picture straight into the pack's Save Video."""
    settings = {"fps": 8, "filename_prefix": "video/save", "format": "mp4-h264", "crf": -1, "pingpong": False}
    return {
        PICTURE: node("LoadImage", image=picture),
        SAVE: node("I2VTRT_SaveVideo", **{"frames": [PICTURE, 0], **settings, **inputs}),
    }


def ran(result: RunResult) -> set[str]:
    """The nodes that did something, and were not answered from the server's own cache of outputs."""
    return {event.data["node"] for event in result.of_kind("executing") if event.data["node"] is not None}


def text(result: RunResult, name: str) -> str:
    """What the node says of its run, line by line."""
    (lines,) = result.outputs[name]["text"]
    return lines


def frames(client: ComfyClient, result: RunResult) -> torch.Tensor:
    """The saved clip [frames, height, width, 3], integers."""
    assert result.error is None, result.error
    assert result.status == "success"
    (described,) = result.outputs[SAVE]["files"]
    data = client.view(described["filename"], described["subfolder"], described["type"])
    with av.open(io.BytesIO(data)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def png(image: Image.Image) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def gradient(width: int = 48, height: int = 32, blue: int = 0) -> Image.Image:
    """A picture in which every place has its own colour."""
    image = Image.new("RGB", (width, height))
    image.putdata([(x * 255 // width, y * 255 // height, blue) for y in range(height) for x in range(width)])
    return image


def file_names(folder: Path) -> set[str]:
    """Every file and folder below, by its relative name."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.is_dir() else set()


def sentences(errors: Iterable[Mapping[str, Any]], field: str) -> set[str]:
    """What the server says of one input of a node, without its own frame around our sentence."""
    return {
        f"{error['message']}: {error['details']}" if error["type"] != "custom_validation_failed" else told
        for error in errors
        if error["extra_info"].get("input_name") == field
        for told in [error["details"].removeprefix(f"{field} - ")]
    }
