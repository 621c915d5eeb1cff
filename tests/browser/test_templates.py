"""The list of templates: the pack's come in its order, each with a picture of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.workflow_names import NAMES
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.browser.screen import CARD_OF_ANY, PACK, VIEWPORTS
from i2v_tensorrt.tests.helpers.locales import LANGUAGES

FIRST = 6
"""How many cards a small window shows without a turn of the wheel."""
CUT = f"""() => [...document.querySelectorAll("{CARD_OF_ANY} h3")]
  .filter((title) => title.scrollHeight > title.clientHeight).map((title) => title.textContent)"""
WIDTHS = f"""() => [...document.querySelectorAll("{CARD_OF_ANY} img")].map((picture) => picture.naturalWidth)"""
# What our script makes of the answers of other hosts: one without our list, one that has something else there, none.
ANSWERS = """async (folder) => {
  const { getWorkflowTemplates } = app.api;
  const answers = [{other: ["b", "a"]}, {[folder]: "text"}, null];
  const given = [];
  try {
    for (const [number, answer] of answers.entries()) {
      app.api.getWorkflowTemplates = async () => answer;
      await import(`/extensions/${folder}/templates.js?${number}`);
      given.push(await app.api.getWorkflowTemplates() === answer);
    }
    const list = {other: ["b", "a"], [folder]: ["z", "Low memory", "First video", "a"]};
    app.api.getWorkflowTemplates = async () => list;
    await import(`/extensions/${folder}/templates.js?list`);
    return [given, await app.api.getWorkflowTemplates()];
  } finally {
    app.api.getWorkflowTemplates = getWorkflowTemplates;
  }
}"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_they_come_in_our_order_with_pictures_and_whole_titles(
    language: str, server: ComfyServer, open_screen: Any, hosts_own: frozenset[str], pictures: Path
) -> None:
    with open_screen(server.url, hosts_own, Locale=language) as screen:
        screen.page.locator(".templates-tab-button").click()
        screen.show_templates()
        for width, height in VIEWPORTS:
            screen.page.set_viewport_size({"width": width, "height": height})
            screen.settle()
            screen.page.screenshot(path=pictures / f"templates-{language}-{width}x{height}.png")
            shown = screen.templates()
            assert len(shown) >= FIRST and tuple(shown) == NAMES[: len(shown)]
            assert screen.page.evaluate(CUT) == []
            assert set(screen.page.evaluate(WIDTHS)) == {480}
        assert screen.console.faults() == []


def test_what_is_not_ours_stays_as_the_host_gives_it(server: ComfyServer, open_screen: Any) -> None:
    with open_screen(server.url, Locale="en") as screen:
        untouched, ordered = screen.page.evaluate(ANSWERS, PACK)
    assert untouched == [True, True, True]
    assert ordered == {"other": ["b", "a"], PACK: ["First video", "Low memory", "z", "a"]}
