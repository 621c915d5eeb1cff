"""The runners obey ComfyUI's memory manager, and the Engine Loader what its user wants of a missing engine."""

from typing import Any

import pytest

from i2v_tensorrt.jobs.comfy_client import ComfyClient
from i2v_tensorrt.tests.comfy.graphs import (
    CONDITIONING,
    DECODE,
    ENGINES,
    SAMPLER,
    SAVE,
    Prompt,
    changed,
    clip,
    node,
    published,
    text,
)

OURS = {"I2VEngine"}


def loaded(client: ComfyClient) -> list[str]:
    """The models that ComfyUI holds in memory now."""
    return client.run({"1": node("ProbeModels")}).outputs["1"]["models"]


def held(client: ComfyClient) -> int:
    """Bytes that these models say they hold."""
    return client.run({"1": node("ProbeModels")}).outputs["1"]["bytes"][0]


def freed(client: ComfyClient, **wishes: bool) -> bool:
    """Asks for memory until it was given: the server frees once it is idle."""
    for _ in range(20):
        client.free(**wishes)
        if not loaded(client):
            return True
    return False


@pytest.mark.parametrize("outputs", [False, True], ids=["models", "models and outputs"])
def test_freed_memory_holds_no_runner(client: ComfyClient, picture: str, outputs: bool) -> None:
    first = clip(picture, {CONDITIONING: {"prompt": f"free {outputs}"}})
    assert client.run(first).status == "success"
    assert set(loaded(client)) == OURS
    assert held(client) > 1_000_000  # the tiny UNet has 1.4 million weights
    assert freed(client, unload_models=True, free_memory=outputs)
    assert held(client) == 0

    again = client.run(changed(first, {SAMPLER: {"seed": 2}}))
    assert (again.status, again.error) == ("success", None)
    assert set(loaded(client)) == OURS


def with_loader(picture: str, **inputs: Any) -> Prompt:
    """The published graph, Engine Loader and all, at a size for which nothing was built."""
    prompt = clip(picture, {CONDITIONING: {"width": 96, "height": 64}})
    prompt[ENGINES] = changed(published("image_to_video"), {ENGINES: inputs})[ENGINES]
    return changed(prompt, {name: {"model": [ENGINES, 0]} for name in (CONDITIONING, SAMPLER, DECODE)})


def test_a_missing_engine_runs_eager_with_a_warning(client: ComfyClient, picture: str) -> None:
    result = client.run(with_loader(picture, on_missing="eager"))
    assert (result.status, result.error) == ("success", None)
    assert "core runs in eager PyTorch, which is slower." in text(result, SAMPLER)
    assert text(result, SAMPLER).splitlines()[1].startswith("eager, ")
    assert "vae_decoder runs in eager PyTorch, which is slower." in text(result, DECODE)


def test_a_missing_engine_stops_when_it_shall(client: ComfyClient, picture: str) -> None:
    result = client.run(with_loader(picture, on_missing="stop"))
    assert result.status == "error"
    assert result.error is not None
    assert "MissingEngineError: " in result.error
    assert_one_sentence(result.error)
    assert SAVE not in result.outputs


def test_eager_as_a_backend_needs_no_engine(client: ComfyClient, picture: str) -> None:
    result = client.run(with_loader(picture, on_missing="stop", backend="eager"))
    assert result.error is None
    assert text(result, ENGINES).startswith("eager, ")
    assert "slower" not in text(result, SAMPLER)


def assert_one_sentence(error: str) -> None:
    assert "\n" not in error
    assert error.endswith(".")
