"""How the live tests run a prompt, and read what its nodes answered and what the server has written."""

import io
import json
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient, Event, PromptRefusedError, RunResult
from i2v_tensorrt.remote.comfyui.messages import made_files
from i2v_tensorrt.tests.live.graphs import Prompt, node
from i2v_tensorrt.tests.live.ids import SAVE


def run(client: ComfyClient, prompt: Prompt) -> RunResult:
    """What comes of a prompt that runs to its end."""
    return succeeded(client.run(prompt))


def succeeded(result: RunResult) -> RunResult:
    assert (result.status, result.error) == ("success", None)
    return result


def free(client: ComfyClient, unload_models: bool = True, free_memory: bool = True) -> None:
    """Has the server let go, and waits for it: it does so once idle, which is after the next prompt at the latest."""
    client.free(unload_models, free_memory)
    run(client, {"1": node("PreviewAny", source="between")})


def failure(client: ComfyClient, prompt: Prompt) -> str:
    """The error with which a prompt ends that is taken and fails in the run."""
    result = client.run(prompt)
    assert result.status == "error" and result.error is not None, result
    return result.error


def refused(client: ComfyClient, prompt: Prompt) -> dict[str, Any]:
    """What the server says of each node of a prompt that it does not take."""
    with pytest.raises(PromptRefusedError) as caught:
        client.queue(prompt)
    return caught.value.node_errors


def sentences(refusal: Mapping[str, Any], name: str, field: str) -> set[str]:
    """What the server says of one input of a node, without its own frame around our sentence."""
    return {
        f"{error['message']}: {error['details']}" if error["type"] != "custom_validation_failed" else told
        for error in refusal[name]["errors"]
        if error["extra_info"].get("input_name") == field
        for told in [error["details"].removeprefix(f"{field} - ")]
    }


def interrupt_at(client: ComfyClient, name: str, value: int) -> Callable[[Event], None]:
    """Interrupts a prompt as soon as it is heard that the node has come so far."""

    def hear(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] == name and event.data["value"] >= value:
            client.interrupt(event.data["prompt_id"])

    return hear


def ran(result: RunResult) -> set[str]:
    """The nodes that did something, and were not answered from the server's own cache of outputs."""
    return {event.data["node"] for event in result.of_kind("executing") if event.data["node"] is not None}


def text(result: RunResult, name: str) -> str:
    """What the node says of its run, line by line."""
    (lines,) = result.outputs[name]["text"]
    return lines


def lines(result: RunResult, name: str) -> list[str]:
    """The same without the line on memory that a GPU has."""
    return [line for line in text(result, name).splitlines() if "VRAM" not in line]


def movie(client: ComfyClient, prompt: Prompt) -> torch.Tensor:
    """The clip that a prompt saves."""
    return frames(client, client.run(prompt))


def frames(client: ComfyClient, result: RunResult) -> torch.Tensor:
    """The saved clip [frames, height, width, 3], integers."""
    (file,) = made_files({SAVE: succeeded(result).outputs[SAVE]})
    data = client.view(file.filename, file.subfolder, file.type)
    with av.open(io.BytesIO(data)) as container:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)])


def pictures(client: ComfyClient, result: RunResult, name: str) -> list[Image.Image]:
    """What a node shows."""
    return [Image.open(io.BytesIO(client.view(**each))).convert("RGB") for each in result.outputs[name]["images"]]


def core_saves_in(client: ComfyClient, picture: str, subfolder: str) -> bool:
    """Whether ComfyUI's own node saves in a folder below the output folder; it leaves a picture there if so."""
    prompt = {"1": node("LoadImage", image=picture)}
    prompt["2"] = node("SaveImage", images=["1", 0], filename_prefix=f"{subfolder}/image")
    return client.run(prompt).status == "success"


def file_names(folder: Path) -> set[str]:
    """Every file and folder below, by its relative name."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.is_dir() else set()


def engines_in(base_directory: Path) -> set[Path]:
    """The engines in the store of a server."""
    return set((base_directory / "models" / "i2v_engines").glob("?" * 64))


def got(url: str) -> bytes:
    """What a server of ours answers; raises where that is an error."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as response:
        return response.read()


def json_of(url: str) -> Any:
    return json.loads(got(url))
