"""Two users of one server (--multi-user), each before a page of their own: what runs shows itself to its owner."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.browser.conftest import pictures_of
from i2v_tensorrt.tests.browser.screen import NAMES_US, Screen, post
from i2v_tensorrt.tests.browser.test_pages import MARKS, QUICK_START, seed

USERS = ("Änne", "李雷")
# What the server tells a page of work, as the page's own parts and the pack's scripts hear it.
LISTEN = """() => {
  window.i2vHeard = {prompts: [], sheets: [], previews: [], texts: 0};
  const {prompts, sheets, previews} = i2vHeard;
  app.api.addEventListener("execution_start", ({detail}) => prompts.push(detail.prompt_id));
  app.api.addEventListener("i2v_tensorrt.sheet", ({detail}) => sheets.push(detail.prompt_id));
  app.api.addEventListener("b_preview_with_metadata", ({detail}) => previews.push(detail.jobId ?? detail.promptId));
  app.api.addEventListener("progress_text", () => { i2vHeard.texts += 1; });
}"""
HEARD = "() => window.i2vHeard"
# The colours beside the video of the saver, low and high: the page makes room for it by itself, and may forget to draw
# the node anew.
EDGES = """() => {
  const {pos, size} = app.graph.nodes.find(({comfyClass}) => comfyClass === "I2VTRT_SaveVideo");
  const {ds, canvas} = app.canvas;
  const pixel = (y) => [pos[0] + 5, y].map((value, n) => (value + ds.offset[n]) * ds.scale * devicePixelRatio);
  const colour = (y) => [...canvas.getContext("2d").getImageData(...pixel(y), 1, 1).data];
  return [colour(pos[1] + size[1] - 10), colour(pos[1] + size[1] / 2)];
}"""
FEWER = """() => {
  const sampler = app.graph.nodes.find(({comfyClass}) => comfyClass === "I2VTRT_DDIMSampler");
  sampler.widgets.find(({name}) => name === "steps").value = 3;
}"""


@pytest.fixture(scope="module")
def server(chromium: Any, start_clean: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """One that asks who is there."""
    with start_clean(tmp_path_factory.mktemp("users"), "--multi-user") as running:
        yield running


@pytest.fixture(scope="module")
def users(server: ComfyServer) -> list[str]:
    """The ids that the server gives them."""
    return [post(f"{server.url}/users", {"username": name}) for name in USERS]


@pytest.fixture
def screens(server: ComfyServer, open_screen: Any, users: list[str]) -> Iterator[list[Screen]]:
    """Both with the quick start open, and their ears too."""
    with ExitStack() as stack:
        opened = []
        for user in users:
            chosen = {"TutorialCompleted": True, "Locale": "en", "VueNodes.Enabled": False}
            screen = stack.enter_context(open_screen(server.url, user=user, **chosen))
            screen.open_template(QUICK_START)
            screen.page.evaluate(LISTEN)
            screen.page.evaluate(FEWER)
            opened.append(screen)
        yield opened


def test_two_users_see_their_own_runs_alone(screens: list[Screen], server: ComfyServer) -> None:
    for number, screen in enumerate(screens):
        seed(screen, 30 + number)
        screen.press_run()
    assert [screen.wait_until_run()["kind"] for screen in screens] == ["execution_success"] * 2
    heard = []
    for screen, name in zip(screens, ("one", "other"), strict=True):
        screen.wait_until_videos_move()
        screen.settle()
        low, high = screen.page.evaluate(EDGES)
        assert low == high, "the saver is drawn as large as it is"
        screen.page.screenshot(path=pictures_of(server) / f"user_{name}.png")
        marks = screen.page.evaluate(MARKS)
        assert [found for found in marks.values() if "i2v-loop" in found and "sheet" in found]
        heard.append(screen.page.evaluate(HEARD))
        assert not [line for line in screen.console.faults() if NAMES_US.search(line)]
    for each in heard:
        (prompt,) = each["prompts"]
        assert each["sheets"] == [prompt]
        assert each["previews"] and set(each["previews"]) == {prompt}
        assert each["texts"] > 0
    assert heard[0]["prompts"] != heard[1]["prompts"]


def test_who_runs_nothing_hears_nothing(screens: list[Screen]) -> None:
    one, other = screens
    seed(one, 40)
    one.press_run()
    assert one.wait_until_run()["kind"] == "execution_success"
    other.settle()
    assert other.page.evaluate(HEARD) == {"prompts": [], "sheets": [], "previews": [], "texts": 0}
    assert other.page.evaluate(MARKS) == {}
