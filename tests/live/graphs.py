"""The prompts that the live tests post, and the pictures in them."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.tests.live.ids import CHECKPOINT, CONDITIONING, DECODE, ENGINES, LOADER, PICTURE, SAMPLER, SAVE

Prompt = dict[str, dict[str, Any]]
Changes = Mapping[str, Mapping[str, Any]]

PUBLISHED = Path(__file__).resolve().parents[2] / "workflows" / "api"
SMALL = {
    LOADER: {"checkpoint": CHECKPOINT},
    CONDITIONING: {"width": 64, "height": 64, "num_frames": 4, "fps": 8},
    SAMPLER: {"steps": 2},
}
"""What makes a published workflow small: the checkpoint, the sizes and the steps, and nothing else."""
LOSSLESS = {SAVE: {"format": "mkv-ffv1"}}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node of a prompt."""
    return {"class_type": class_type, "inputs": inputs}


def published(name: str) -> Prompt:
    """A workflow as it ships."""
    return json.loads((PUBLISHED / f"{name}.json").read_text("utf-8"))


def changed(prompt: Prompt, *changes: Changes) -> Prompt:
    """The prompt with other inputs, by node id; an input set to None is left out."""
    copy = json.loads(json.dumps(prompt))
    for change in changes:
        for name, inputs in change.items():
            copy[name]["inputs"].update(inputs)
            copy[name]["inputs"] = {key: value for key, value in copy[name]["inputs"].items() if value is not None}
    return copy


def clip(picture: str, *changes: Changes) -> Prompt:
    """The small published graph without its Engine Loader: everything in eager PyTorch."""
    prompt = published(workflow_names.QUICK_START)
    del prompt[ENGINES]
    return changed(model_from(prompt, LOADER), SMALL, {PICTURE: {"image": picture}}, *changes)


def model_from(prompt: Prompt, source: str) -> Prompt:
    """The prompt, whose stages take their model from that node."""
    return changed(prompt, {name: {"model": [source, 0]} for name in (CONDITIONING, SAMPLER, DECODE)})


def with_engines(prompt: Prompt, **inputs: Any) -> Prompt:
    """What `clip` gives, with the published graph's Engine Loader in its place, and those inputs of it changed."""
    loader = changed(published(workflow_names.QUICK_START), {ENGINES: inputs})[ENGINES]
    return model_from({**prompt, ENGINES: loader}, ENGINES)


def only(prompt: Prompt, *names: str) -> Prompt:
    """Those nodes of the prompt, and a preview that asks for the last one's first output."""
    return {name: prompt[name] for name in names} | {"9": node("PreviewAny", source=[names[-1], 0])}


def encoding(picture: str, *changes: Changes) -> Prompt:
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
