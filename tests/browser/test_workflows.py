"""Every shipped workflow in the page: it opens whole and readable, it runs, and its video plays."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.browser.screen import LOAD_MS, VIEWPORTS, Screen
from i2v_tensorrt.tests.helpers.locales import LANGUAGES

NAMES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))


@pytest.fixture
def screen(
    request: pytest.FixtureRequest, server: ComfyServer, open_screen: Any, hosts_own: frozenset[str]
) -> Iterator[Screen]:
    """A page in the test's language."""
    language = request.node.callspec.params.get("language", "en")
    with open_screen(server.url, hosts_own, Locale=language) as screen:
        yield screen


@pytest.fixture(scope="module")
def offered(server: ComfyServer) -> list[str]:
    """The checkpoints that the server has."""
    loader = ComfyClient(server.url).object_info()["I2VTRT_ModelLoader"]
    kind, more = loader["input"]["required"]["checkpoint"]
    return kind if isinstance(kind, list) else more["options"]


FILES = ("checkpoint", "ckpt_name", "model_name", "file")
"""Inputs that name a file of a network."""


def checkpoints(name: str) -> set[str]:
    """Those that a workflow names, and other networks."""
    prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
    named = [node["inputs"] for node in prompt.values()]
    return {inputs[key] for inputs in named for key in FILES if key in inputs}


def look_at(screen: Screen, picture: Path) -> list[str]:
    """A picture in each size of window, and what is wrong there."""
    faults = []
    for width, height in VIEWPORTS:
        screen.show((width, height))
        screen.page.screenshot(path=f"{picture}-{width}x{height}.png")
        faults += [f"{width}x{height}: {fault}" for fault in screen.faults()]
    return faults


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_it_opens_whole_and_readable(name: str, language: str, screen: Screen, pictures: Path) -> None:
    screen.open_template(name)
    faults = look_at(screen, pictures / f"{name}-{language}")
    if language == "en":
        screen.picture_of_graph(pictures / f"{name}-graph.png")  # of those that cannot run here
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_video_plays(name: str, screen: Screen, offered: list[str], pictures: Path) -> None:
    lacking = checkpoints(name) - set(offered)
    if lacking:
        pytest.skip(f"the checkpoint is not here: {', '.join(lacking)}")
    screen.open_template(name)
    screen.press_run()
    ended = screen.wait_until_run()
    assert ended["kind"] == "execution_success", ended
    savers = screen.page.evaluate("() => app.graph.nodes.filter((node) => /SaveVideo$/.test(node.type)).length")
    screen.page.wait_for_function(f"() => document.querySelectorAll('video').length === {savers}", timeout=LOAD_MS)
    if savers:
        # Ours begin by themselves; the core's wait for a click.
        screen.page.evaluate(
            "() => app.graph.nodes.filter((node) => node.type === 'SaveVideo')"
            ".forEach((node) => node.videoContainer.querySelector('video').play())"
        )
        screen.wait_until_videos_move()
    faults = look_at(screen, pictures / f"{name}-run")
    screen.picture_of_graph(pictures / f"{name}-graph.png")
    assert not faults, "\n".join(faults)
