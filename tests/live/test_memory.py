"""The runners obey ComfyUI's memory manager, and the Engine Loader what its user wants of a missing engine."""

import re
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import lines, ran, run, text
from i2v_tensorrt.tests.live.device import Device, flags
from i2v_tensorrt.tests.live.graphs import Prompt, changed, clip, node, with_engines
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, ENGINES, SAMPLER, SAVE

OURS = {"I2VEngine"}
STAYING = set() if "--disable-smart-memory" in flags() else OURS
"""What stays loaded when a prompt has ended."""
PROBE = "30"
NEVER_BUILT = {CONDITIONING: {"width": 96, "height": 64}}
"""A size for which no test builds engines."""


def probed(client: ComfyClient, prompt: Prompt | None = None) -> dict[str, Any]:
    """The models that ComfyUI holds in memory now, and their bytes.

    `prompt` is one that has just run: what its nodes gave is kept for it, and would be dropped for another one.
    """
    result = client.run({**(prompt or {}), PROBE: node("ProbeModels")})
    assert ran(result) == {PROBE}
    return result.outputs[PROBE]


def freed(client: ComfyClient, prompt: Prompt | None, **wishes: bool) -> dict[str, Any]:
    """Asks for memory until it was given, for the server frees once it is idle; what is held then."""
    found: dict[str, Any] = {}
    for _ in range(20):
        client.free(**wishes)
        found = probed(client, prompt)
        if not found["models"]:
            break
    return found


@pytest.mark.usefixtures("kept_outputs")
@pytest.mark.parametrize("outputs", [False, True], ids=["models", "models and outputs"])
def test_freed_memory_holds_no_runner(client: ComfyClient, picture: str, outputs: bool) -> None:
    first = clip(picture, {CONDITIONING: {"prompt": f"free {outputs}"}})
    run(client, first)
    held = probed(client, first)
    assert OURS & set(held["models"]) == STAYING  # other tests may have left models of the core
    assert bool(STAYING) == (held["bytes"][0] > 1_000_000)  # the tiny UNet has 1.4 million weights
    assert freed(client, None if outputs else first, unload_models=True, free_memory=outputs)["bytes"] == [0]

    again = changed(first, {SAMPLER: {"seed": 2}})
    run(client, again)
    assert OURS & set(probed(client, again)["models"]) == STAYING


def test_what_no_node_holds_any_more_leaves_the_memory(
    client: ComfyClient, picture: str, server_arguments: list[str]
) -> None:
    """At once, and not when Python looks for cycles: another prompt drops what the nodes of the last one gave."""
    if "--cache-classic" not in server_arguments:
        pytest.skip("ComfyUI's default cache keeps what the nodes of earlier prompts gave.")
    first = clip(picture, {CONDITIONING: {"prompt": "held by nobody"}})
    run(client, first)
    assert set(probed(client, first)["models"]) == OURS
    assert probed(client)["bytes"] == [0]


@pytest.mark.usefixtures("builder_backend")
def test_a_missing_engine_runs_eager_with_a_warning_or_stops(client: ComfyClient, picture: str, device: Device) -> None:
    never_built = clip(picture, NEVER_BUILT)
    result = run(client, with_engines(never_built, on_missing="eager"))
    assert "core runs in eager PyTorch, which is slower." in text(result, SAMPLER)
    assert lines(result, SAMPLER)[1] == f"eager, {device.here}"
    assert "vae_decoder runs in eager PyTorch, which is slower." in text(result, DECODE)
    stopped = client.run(with_engines(never_built, on_missing="stop"))
    assert stopped.status == "error" and SAVE not in stopped.outputs
    assert re.fullmatch(r".*MissingEngineError: .*\.", stopped.error or "")  # one line


def test_eager_as_a_backend_needs_no_engine(client: ComfyClient, picture: str) -> None:
    result = run(client, with_engines(clip(picture, NEVER_BUILT), on_missing="stop", backend="eager"))
    assert text(result, ENGINES).startswith("eager, ")
    assert "slower" not in text(result, SAMPLER)
