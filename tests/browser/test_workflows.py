"""Every shipped workflow in the page: it opens whole and readable, it runs, and its video plays."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.jobs.comfy_host import ComfyServer
from i2v_tensorrt.jobs.demo_model import PACK
from i2v_tensorrt.tests.browser.screen import VIEWPORTS, Screen
from i2v_tensorrt.tests.workflows.locales import LANGUAGES

NAMES = sorted(path.stem for path in (PACK / "workflows").glob("*.json"))


@pytest.fixture
def screen(
    request: pytest.FixtureRequest, server: ComfyServer, open_screen: Any, hosts_own: frozenset[str]
) -> Iterator[Screen]:
    """A page in the test's language."""
    language = request.node.callspec.params.get("language", "en")
    with open_screen(server.url, hosts_own, Locale=language) as screen:
        yield screen


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", NAMES)
def test_it_opens_whole_and_readable(name: str, language: str, screen: Screen, pictures: Path) -> None:
    screen.open_template(name)
    faults = {}
    for width, height in VIEWPORTS:
        screen.show((width, height))
        screen.page.screenshot(path=pictures / f"{name}-{language}-{width}x{height}.png")
        faults[width, height] = screen.faults()
    assert not any(faults.values()), faults


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_and_its_video_plays(name: str, screen: Screen, pictures: Path) -> None:
    screen.open_template(name)
    screen.press_run()
    ended = screen.wait_until_run()
    assert ended["kind"] == "execution_success", ended
    screen.settle()
    videos = screen.page.locator("video")
    savers = screen.page.evaluate("() => app.graph.nodes.filter((node) => /SaveVideo$/.test(node.type)).length")
    assert videos.count() == savers
    if savers:
        # Ours begin by themselves; the core's wait for a click.
        screen.page.evaluate(
            "() => app.graph.nodes.filter((node) => node.type === 'SaveVideo')"
            ".forEach((node) => node.videoContainer.querySelector('video').play())"
        )
        screen.wait_until_videos_move()
    faults = {}
    for width, height in VIEWPORTS:
        screen.show((width, height))
        screen.page.screenshot(path=pictures / f"{name}-run-{width}x{height}.png")
        faults[width, height] = screen.faults()
    assert not any(faults.values()), faults
