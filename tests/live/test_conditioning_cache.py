"""A clip is encoded once: in a second prompt, after its memory was freed, and after a restart."""

from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, start_server
from i2v_tensorrt.tests.live.answers import lines, ran, run, text
from i2v_tensorrt.tests.live.device import Device
from i2v_tensorrt.tests.live.graphs import changed, clip, encoding, gradient, node, png
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, LOADER, SAMPLER

WIDGETS = {
    "prompt": "a boat",
    "negative_prompt": "a storm",
    "width": 72,
    "height": 72,
    "num_frames": 3,
    "fps": 9,
}


def about(prompt: str, **others: Any) -> dict[str, dict[str, Any]]:
    """Conditioning inputs that no other test encodes."""
    return {CONDITIONING: {"prompt": prompt, **others}}


@pytest.mark.usefixtures("kept_outputs")
def test_an_identical_prompt_does_nothing_and_another_seed_encodes_nothing(client: ComfyClient, picture: str) -> None:
    prompt = clip(picture, about("identical"))
    first = run(client, prompt)
    assert text(first, CONDITIONING).startswith("cache miss: encoded in ")
    assert {CONDITIONING, SAMPLER} < ran(first)
    second = run(client, prompt)
    assert ran(second) == set()
    assert second.progress == {}
    third = run(client, changed(prompt, {SAMPLER: {"seed": 2}}))
    assert CONDITIONING not in ran(third)
    assert [value for value, _ in third.progress[SAMPLER]] == [1, 2]


def test_a_picture_counts_and_its_name_does_not(client: ComfyClient, picture: str) -> None:
    run(client, encoding(picture, about("another picture")))
    for blue, found in ((1, "cache miss"), (0, "cache hit (memory)")):
        other = client.upload_image(png(gradient(blue=blue)), f"copy {blue}.png")
        assert text(run(client, encoding(other, about("another picture"))), CONDITIONING).startswith(found)


@pytest.mark.parametrize("name", WIDGETS)
def test_every_widget_counts(client: ComfyClient, picture: str, name: str) -> None:
    run(client, encoding(picture, about(f"every widget but {name}")))
    changes = about(f"every widget but {name}", **({} if name == "prompt" else {name: WIDGETS[name]}))
    changes[CONDITIONING]["prompt"] += " and more" if name == "prompt" else ""
    assert text(run(client, encoding(picture, changes)), CONDITIONING).startswith("cache miss")


def by_name(device: Device) -> dict[str, dict[str, Any]]:
    """The same precision on this device, but another input: ComfyUI runs the nodes behind it again."""
    return {LOADER: {"precision": device.precision}}


def test_a_hit_is_told_with_the_time_saved_and_what_was_cut_off(
    client: ComfyClient, picture: str, device: Device
) -> None:
    long = about("long " * 100)
    first, second = (run(client, encoding(picture, long, change)) for change in ({}, by_name(device)))
    told, cut = lines(first, CONDITIONING)
    hit = f"cache hit (memory): {told.removeprefix('cache miss: encoded in ')} saved"
    assert lines(second, CONDITIONING) == [hit, cut]
    assert "only the first 77 count" in cut


def test_after_a_restart_it_comes_from_the_disk(
    client: ComfyClient, picture: str, host: ComfyHost, base_directory: Path, server_arguments: list[str]
) -> None:
    prompt = clip(picture, about("restart"), {SAMPLER: {"reuse_result": True}})
    first = run(client, prompt)
    with start_server(host, base_directory, server_arguments, base_directory / "restarted.log") as restarted:
        second = run(ComfyClient(restarted.url), prompt)
        again = run(ComfyClient(restarted.url), changed(prompt, {SAMPLER: {"reuse_result": False}}))
    (told,) = lines(first, CONDITIONING)
    assert text(second, CONDITIONING) == f"cache hit (disk): {told.removeprefix('cache miss: encoded in ')} saved"
    seconds = text(first, SAMPLER).splitlines()[0].removeprefix("denoised in ")
    assert text(second, SAMPLER) == f"result cache hit (disk): {seconds} saved"
    assert text(again, SAMPLER).startswith("denoised in "), "nothing is taken from it unless that is asked for"


def test_a_kept_result_is_what_was_sampled(client: ComfyClient, picture: str, device: Device) -> None:
    """The frames of a second run, with a node between that makes the server run the sampler again."""
    prompt = clip(picture, about("kept"), {SAMPLER: {"reuse_result": True}})
    others = {"15": changed(prompt, {SAMPLER: {"model": ["12", 0]}})[SAMPLER]}
    others["12"] = changed(prompt, by_name(device))[LOADER]
    others["16"] = changed(prompt, {DECODE: {"latents": ["15", 0]}})[DECODE]
    probe = {"17": node("ProbeDifference", a=[DECODE, 0], b=["16", 0])}
    assert text(run(client, prompt), SAMPLER).startswith("denoised in ")
    result = run(client, {**prompt, **others, **probe})
    assert text(result, "15").startswith("result cache hit (memory): ")
    assert result.outputs["17"]["difference"] == [0.0]
