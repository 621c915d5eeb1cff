"""Values that no node can use are refused in a sentence: before anything runs where ComfyUI asks, else by a node."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from i2v_tensorrt.cli.node_info import PREFIX, inputs_of, stored
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.helpers.graph import ANY, WIDGETS
from i2v_tensorrt.tests.live.answers import failure, refused, run, sentences
from i2v_tensorrt.tests.live.graphs import Prompt, builder, clip, encoding, node, with_engines
from i2v_tensorrt.tests.live.ids import (
    BUILDER,
    CHECKPOINT,
    CONDITIONING,
    DECODE,
    ENGINES,
    LOADER,
    PICTURE,
    SAMPLER,
    SAVE,
)

NAN, INFINITY = float("nan"), float("inf")

VALUES = [
    (CONDITIONING, "width", 65, "Value 65 bigger than max of 2048 in steps of 8"),
    (CONDITIONING, "height", 100, "Value 100 bigger than max of 2048 in steps of 8"),
    (CONDITIONING, "width", 0, "Value 0 smaller than min of 64"),
    (CONDITIONING, "height", -64, "Value -64 smaller than min of 64"),
    (CONDITIONING, "width", 10**9, "Value 1000000000 bigger than max of 2048 in steps of 8"),
    (CONDITIONING, "width", NAN, "Failed to convert an input value to a INT value"),
    (CONDITIONING, "width", "wide", "Failed to convert an input value to a INT value"),
    (CONDITIONING, "num_frames", 0, "Value 0 smaller than min of 1"),
    (CONDITIONING, "num_frames", 162, "Value 162 bigger than max of 161"),
    (CONDITIONING, "fps", 0, "Value 0 smaller than min of 1"),
    (CONDITIONING, "motion_bucket_id", -1, "Value -1 smaller than min of 0"),
    (CONDITIONING, "noise_aug_strength", NAN, "Value nan bigger than max of 10.0"),
    (SAMPLER, "guidance_scale", NAN, "Value nan bigger than max of 100.0"),
    (SAMPLER, "guidance_scale", INFINITY, "Value inf bigger than max of 100.0"),
    (SAMPLER, "guidance_scale", -INFINITY, "Value -inf smaller than min of 0.0"),
    (SAMPLER, "guidance_scale", -1, "Value -1.0 smaller than min of 0.0"),
    (SAMPLER, "min_guidance_scale", NAN, "Value nan bigger than max of 100.0"),
    (SAMPLER, "late_guidance_scale", 101.0, "Value 101.0 bigger than max of 100.0"),
    (SAMPLER, "shift", -1.0, "Value -1.0 smaller than min of 0.0"),
    (SAMPLER, "shift", NAN, "Value nan bigger than max of 100.0"),
    (SAMPLER, "strength", 0, "Value 0.0 smaller than min of 0.01"),
    (SAMPLER, "strength", NAN, "Value nan bigger than max of 1.0"),
    (SAMPLER, "eta", 2, "Value 2.0 bigger than max of 1.0"),
    (SAMPLER, "eta", NAN, "Value nan bigger than max of 1.0"),
    (SAMPLER, "steps", 0, "Value 0 smaller than min of 1"),
    (SAMPLER, "steps", 10**6, "Value 1000000 bigger than max of "),
    (SAMPLER, "seed", -1, "Value -1 smaller than min of 0"),
    (SAMPLER, "seed", 1 << 64, "Value 18446744073709551616 bigger than max of 18446744073709551615"),
    (SAMPLER, "scheduler", "karras", "Value not in list: scheduler: 'karras' not in "),
    (SAMPLER, "scheduler", {"a": 1}, "Value not in list: scheduler: "),
    (LOADER, "checkpoint", "none-such", "There is no checkpoint 'none-such' in "),
    (LOADER, "checkpoint", "stable-video-diffusion-img2vid-xt", "There is no checkpoint 'stable-video-diffusion-"),
    (LOADER, "checkpoint", "../../../etc", "There is no checkpoint '../../../etc' in "),
    (LOADER, "precision", "int4", "Value not in list: precision: 'int4' not in "),
    (ENGINES, "backend", "tpu", "Value not in list: backend: 'tpu' not in "),
    (ENGINES, "backend", {"a": 1}, "Value not in list: backend: "),
    (ENGINES, "on_missing", "pray", "Value not in list: on_missing: 'pray' not in "),
    (BUILDER, "component", "flux", "Value not in list: component: 'flux' not in "),
    (BUILDER, "width", 65, "Value 65 bigger than max of 2048 in steps of 8"),
    (BUILDER, "presets", "wide", "A preset is width x height x frames, such as 512x512x16, found 'wide'."),
    (BUILDER, "num_frames", 0, "Value 0 smaller than min of 1"),
    (BUILDER, "backend", "tpu", "Value not in list: backend: 'tpu' not in "),
    (BUILDER, "target", "sm_1", "Value not in list: target: 'sm_1' not in "),
    (BUILDER, "backend", {"a": 1}, "Value not in list: backend: "),
    (BUILDER, "target", {"a": 1}, "Value not in list: target: "),
    (DECODE, "chunk", -1, "Value -1 smaller than min of 0"),
    (SAVE, "format", "avi", "Value not in list: format: 'avi' not in "),
    (SAVE, "format", {"a": 1}, "Value not in list: format: "),
    (SAVE, "crf", 101, "Value 101.0 bigger than max of 100.0"),
    (SAVE, "crf", NAN, "Value nan bigger than max of 100.0"),
    (SAVE, "fps", NAN, "Value nan bigger than max of 1000.0"),
    (SAVE, "fps", 0, "Value 0.0 smaller than min of 0.01"),
    (SAVE, "filename_prefix", "", "A file name is a text such as video/clip, found ''."),
    (SAVE, "filename_prefix", "../x", "A file name has no empty, dotted or reserved parts, found '..' in '../x'."),
    (SAVE, "filename_prefix", "a/../../x", "A file name has no empty, dotted or reserved parts, found '..' in "),
    (SAVE, "filename_prefix", "/etc/x", "A file name lies below the output folder, found the absolute '/etc/x'."),
    (SAVE, "filename_prefix", "C:\\x", "A file name has no control characters and none of "),
    (SAVE, "filename_prefix", "a\0b", "A file name has no control characters and none of "),
    (SAVE, "filename_prefix", "NUL", "A file name has no empty, dotted or reserved parts, found 'NUL' in 'NUL'."),
    (SAVE, "filename_prefix", "\ud800", "A file name is valid Unicode, found '\\ud800'."),
    (SAVE, "filename_prefix", "x" * 300, "A part of a file name has at most 223 bytes, found 300."),
    (SAVE, "filename_prefix", "/".join(["long"] * 2000), "A file name has at most 1000 bytes in all, found 9999."),
    (SAMPLER, "guidance_scale", "high", "Failed to convert an input value to a FLOAT value"),
    (SAMPLER, "eta", {"a": 1}, "Failed to convert an input value to a FLOAT value"),
]


@pytest.mark.parametrize(("name", "field", "value", "sentence"), VALUES, ids=lambda value: str(value)[:24])
def test_a_value_is_refused_before_anything_runs(
    client: ComfyClient, picture: str, version: tuple[int, ...], name: str, field: str, value: Any, sentence: str
) -> None:
    if sentence.startswith("Value not in list") and version < (0, 8):
        pytest.skip("this ComfyUI does not check V3 combos: a run does")
    prompt = with_engines(clip(picture)) | {BUILDER: builder()}
    prompt[name]["inputs"][field] = value
    refusal = refused(client, prompt)
    assert set(refusal) == {name}
    told = sentences(refusal, name, field)
    assert [line for line in told if line.startswith(sentence)]
    assert len(told) == 1 or sentence.startswith("Failed to convert")  # which does not end ComfyUI's checks
    assert "\n" not in "".join(told)
    # ComfyUI lays the sentence of a node's own check at the door of each input that the check names.
    assert {error["extra_info"]["input_name"] for error in refusal[name]["errors"]} == {field}
    assert not re.search(r"Traceback|File \"", str(refusal))


SOCKETS = [
    (SAMPLER, "conditioning", "20", "LATENT"),
    (SAMPLER, "conditioning", PICTURE, "IMAGE"),
    (SAMPLER, "model", PICTURE, "IMAGE"),
    (CONDITIONING, "image", LOADER, "I2V_MODEL"),
    (DECODE, "latents", CONDITIONING, "I2V_CONDITIONING"),
    (SAVE, "frames", SAMPLER, "LATENT"),
    (SAVE, "audio", DECODE, "IMAGE"),
]


@pytest.mark.parametrize(("name", "field", "source", "kind"), SOCKETS, ids=lambda value: value)
def test_a_socket_of_the_wrong_kind_is_refused(
    client: ComfyClient, picture: str, name: str, field: str, source: str, kind: str
) -> None:
    prompt = clip(picture, {name: {field: [source, 0]}})
    prompt["20"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    (told,) = sentences(refused(client, prompt), name, field)
    assert told.startswith(f"Return type mismatch between linked nodes: {field}, received_type({kind}) mismatch")


def test_a_good_prompt_still_runs(client: ComfyClient, picture: str) -> None:
    run(client, clip(picture))


FILES = ("loras/style.safetensors", "onnx/u2net.onnx")
"""What the lists of I2V LoRA and I2V ONNX Picture have."""
INFO = {name: info for name, info in stored().items() if name.startswith(PREFIX)}
NODE, SHOWN = "1", "2"


@pytest.fixture(scope="module", autouse=True)
def files(base_directory: Path) -> Iterator[None]:
    """The files of the nodes' lists."""
    paths = [base_directory / "models" / name for name in FILES]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"never read")
    yield
    for path in paths:
        path.unlink()


def sockets(kind: str) -> list[str]:
    """The inputs of a node that take a link alone, the needed ones first."""
    known = inputs_of(INFO[kind]).items()
    return [name for name, (type_, _) in known if type_ not in (*WIDGETS, ANY)]


def with_values(kind: str, **values: Any) -> Prompt:
    """The node with its widgets as they are at first, 5 in every socket that needs a link, and those values."""
    known = inputs_of(INFO[kind]).items()
    widgets = {
        name: settings.get("default", settings.get("options", [""])[0])
        for name, (type_, settings) in known
        if type_ in WIDGETS
    }
    needed = {name: 5 for name in sockets(kind) if not dict(known)[name][1]["optional"]}
    if "checkpoint" in widgets:
        widgets["checkpoint"] = CHECKPOINT
    prompt = {NODE: node(kind, **widgets, **{**needed, **values})}
    if not INFO[kind]["output_node"]:
        prompt[SHOWN] = node("PreviewAny", source=[NODE, 0])
    return prompt


def refusal(client: ComfyClient, prompt: Prompt) -> str:
    """The sentence with which the node ends the run."""
    error = failure(client, prompt)
    head = f"node {NODE} ({prompt[NODE]['class_type']}) failed with i2v_tensorrt.InputError: "
    assert error.startswith(head), error
    return error.removeprefix(head)


@pytest.mark.parametrize("kind", sorted(kind for kind in INFO if sockets(kind)))
@pytest.mark.parametrize("value", [5, "x\ny", {"a": 1}, None, True], ids=repr)
def test_a_value_in_the_place_of_a_link(client: ComfyClient, kind: str, value: object) -> None:
    first, *_ = sockets(kind)
    found = repr(value) if isinstance(value, int | str) else f"a {type(value).__name__}"
    expected = f"Expected {first} over a link from a node that gives it, found {found}."
    assert refusal(client, with_values(kind, **{first: value})) == expected


@pytest.mark.parametrize("kind", sorted(INFO))
def test_a_link_to_an_input_that_the_node_does_not_have(client: ComfyClient, kind: str) -> None:
    prompt = with_values(kind, engine_of_mine=["9", 0])
    prompt["9"] = node("PrimitiveBoolean", value=True)
    known = ", ".join(inputs_of(INFO[kind]))
    wanted = f"inputs among {known}" if known else "no inputs"
    assert refusal(client, prompt) == f"Expected {wanted}, found 'engine_of_mine'."


def test_a_single_file_is_listed_and_what_is_missing_is_named(
    client: ComfyClient, picture: str, base_directory: Path
) -> None:
    """Known by what it holds; one of another model is not listed."""
    folder = base_directory / "models" / "diffusion_models"
    folder.mkdir(exist_ok=True)
    tensors = {
        "head.modulation": torch.zeros(1, 2, 4),
        "patch_embedding.weight": torch.zeros(4, 48, 1, 2, 2),
        "text_embedding.0.weight": torch.zeros(4, 7),
    }
    save_file(tensors, folder / "mine.safetensors")
    save_file({"head.modulation": torch.zeros(1, 2, 4)}, folder / "another.safetensors")
    options = client.object_info()["I2VTRT_ModelLoader"]["input"]["required"]["checkpoint"][1]["options"]
    assert "mine.safetensors" in options and "another.safetensors" not in options
    asked = encoding(picture, {LOADER: {"checkpoint": "mine.safetensors"}})
    (told,) = sentences(refused(client, asked), LOADER, "checkpoint")
    assert "mine.safetensors is a single file of Wan 2.2 TI2V, with the denoiser alone" in told
    assert "umt5_xxl_fp16.safetensors into models/text_encoders" in told
    tensors["head.modulation"] = tensors["head.modulation"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "mine.safetensors")
    (told,) = sentences(refused(client, asked), LOADER, "checkpoint")
    assert "ComfyUI's own Load Diffusion Model opens it, and I2V Compile Model behind that" in told
    (folder / "mine.safetensors").unlink()
    (told,) = sentences(refused(client, asked), LOADER, "checkpoint")
    assert "There is no checkpoint 'mine.safetensors'" in told
