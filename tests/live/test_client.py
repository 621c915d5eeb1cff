"""The client against a live ComfyUI, with the core's own nodes and one probe."""

import io
from pathlib import Path

import pytest
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient, Event, PromptRefusedError, RunTimeoutError
from i2v_tensorrt.tests.live.answers import interrupt_at, pictures, run, succeeded
from i2v_tensorrt.tests.live.graphs import Prompt, node, png

RED = 0xFF0000
LONG = 1000


def picture(colour: int, width: int = 48, height: int = 32) -> Prompt:
    """EmptyImage -> SaveImage."""
    return {
        "1": node("EmptyImage", width=width, height=height, batch_size=1, color=colour),
        "2": node("SaveImage", images=["1", 0], filename_prefix="client"),
    }


def probe(steps: int, fails_at: int = -1) -> Prompt:
    return {"5": node("ProbeSteps", steps=steps, fails_at=fails_at)}


def plain(*colour: int) -> bytes:
    """A picture of one colour."""
    return png(Image.new("RGB", (24, 16), colour))


def test_a_core_graph_runs_and_its_picture_and_history_can_be_fetched(client: ComfyClient) -> None:
    prompt = picture(RED)
    result = run(client, prompt)
    assert set(result.outputs) == {"2"}
    (image,) = pictures(client, result, "2")
    assert (image.size, image.getpixel((0, 0))) == ((48, 32), (255, 0, 0))
    history = client.history(result.prompt_id)
    assert (history["outputs"], history["prompt"][2]) == (result.outputs, prompt)


@pytest.mark.parametrize("as_file", [True, False], ids=["path", "bytes"])
def test_an_uploaded_image_can_be_loaded(client: ComfyClient, tmp_path: Path, as_file: bool) -> None:
    content = plain(0, 128, 255)
    path = tmp_path / 'Bild "ü" 1.png'
    path.write_bytes(content)
    name = client.upload_image(path if as_file else content)
    prompt = {"1": node("LoadImage", image=name), "2": node("PreviewImage", images=["1", 0])}
    (image,) = pictures(client, run(client, prompt), "2")
    assert (image.size, image.getpixel((0, 0))) == ((24, 16), (0, 128, 255))


def test_an_upload_overwrites_nothing(client: ComfyClient) -> None:
    first = client.upload_image(plain(1, 2, 3), "same.png")
    second = client.upload_image(plain(4, 5, 6), "same.png")
    assert first != second
    assert client.view(first, type="input") == plain(1, 2, 3)
    assert client.view(second, type="input") == plain(4, 5, 6)


def test_progress_and_previews_come_in_order(client: ComfyClient) -> None:
    seen: list[Event] = []
    result = client.run(probe(steps=4), seen.append)
    assert result.progress == {"5": [(step, 4) for step in (1, 2, 3, 4)]}
    assert result.outputs["5"]["steps"] == [4]
    assert tuple(seen) == result.events
    assert result.events[0].kind == "execution_start"
    assert {preview.node_id for preview in result.previews} == {"5"}
    assert {preview.media_type for preview in result.previews} == {"image/png"}
    pictures = [Image.open(io.BytesIO(preview.image)) for preview in result.previews]
    assert [image.getpixel((0, 0)) for image in pictures] == [(step, 0, 0) for step in range(4)]


def test_only_events_of_the_own_prompt_are_told(client: ComfyClient) -> None:
    other = client.queue(probe(steps=20))
    result = client.run(probe(steps=2))
    assert {event.data["prompt_id"] for event in result.events} == {result.prompt_id}
    assert len(result.previews) == 2
    assert client.history(other)["status"]["completed"]


def test_an_interrupt_ends_its_prompt_and_neither_another_nor_the_server(
    client: ComfyClient, version: tuple[int, ...]
) -> None:
    result = client.run(probe(steps=LONG), interrupt_at(client, "5", 3))
    assert (result.status, result.error) == ("interrupted", "node 5 (ProbeSteps) was interrupted")
    assert 3 <= len(result.progress["5"]) < LONG
    assert result.outputs == {}
    other = run(client, probe(steps=1)).prompt_id
    if version >= (0, 3, 57):  # older ones interrupt whatever runs
        succeeded(client.run(probe(steps=10), lambda _: client.interrupt(other)))


def test_a_failure_names_the_node_and_the_cause(client: ComfyClient) -> None:
    result = client.run(probe(steps=5, fails_at=2))
    assert result.status == "error"
    assert result.error == "node 5 (ProbeSteps) failed with ValueError: the probe fails at step 2"
    assert len(result.progress["5"]) == 2


def test_a_wait_that_is_too_long_or_an_exception_while_watching_cancels_the_prompt(client: ComfyClient) -> None:
    def fail(_: Event) -> None:
        raise ZeroDivisionError

    for error, wait in ((RunTimeoutError, {"timeout_s": 0.5}), (ZeroDivisionError, {"on_event": fail})):
        with pytest.raises(error, match="in time" if "timeout_s" in wait else None):
            client.run(probe(steps=LONG), **wait)
        assert client.run(probe(steps=1), timeout_s=5).status == "success"


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({"1": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}, "Prompt has no outputs"),
        ({"9": node("NoSuchNode")}, "NoSuchNode"),
        (picture(RED, width=-1), "node 1 (EmptyImage): Value -1 smaller than min of 1: width"),
        (picture(RED) | {"1": node("EmptyImage")}, "node 1 (EmptyImage): Required input is missing: width"),
    ],
    ids=["no outputs", "unknown node", "out of range", "missing input"],
)
def test_a_bad_prompt_is_refused_in_one_line(client: ComfyClient, prompt: Prompt, told: str) -> None:
    with pytest.raises(PromptRefusedError) as caught:
        client.run(prompt)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_partly_bad_prompt_is_refused_as_a_whole(client: ComfyClient) -> None:
    prompt = probe(steps=LONG) | picture(RED, width=-1)
    with pytest.raises(PromptRefusedError) as caught:
        client.queue(prompt)
    assert set(caught.value.node_errors) == {"1"}
    assert not any(client.queued())


@pytest.mark.parametrize("place", [0, 1], ids=["running", "waiting"])
def test_a_cancelled_prompt_leaves_the_others_alone(client: ComfyClient, place: int) -> None:
    prompts = [client.queue(probe(steps=30)), client.queue(probe(steps=30))]
    assert client.cancel(prompts[place])
    assert client.run(probe(steps=1)).status == "success"
    assert client.history(prompts[1 - place])["status"]["completed"]


def test_freed_memory_holds_no_cached_outputs(client: ComfyClient) -> None:
    prompt = picture(0x123456)
    client.run(prompt)
    assert cached_nodes(client, prompt) == {"1", "2"}
    # The server frees once it is idle, which may be after the first of these runs has begun.
    for _ in range(20):
        client.free()
        if not cached_nodes(client, prompt):
            return
    pytest.fail("the outputs stayed cached")


def cached_nodes(client: ComfyClient, prompt: Prompt) -> set[str]:
    return {name for event in client.run(prompt).of_kind("execution_cached") for name in event.data["nodes"]}
