"""The pack's colours in the page's light theme."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.browser.screen import VIEWPORTS, Screen, set_settings

ANSWER = """() => {
  const answer = {table: [["backend", "verdict"], ["tensorrt", "cannot run"]], text: ["eager, fp32 on cpu"]};
  for (const node of app.graph.nodes) if (/I2VTRT_Engine(Doctor|Manager)/.test(node.type)) node.onExecuted(answer);
}"""
# WCAG's contrast of each table's words with the node's body behind them, and of each title's words with its bar, as
# it was drawn.
CONTRASTS = """() => {
  const context = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const luminance = (color) => {
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((value) => {
      const share = value / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (one, other) => {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  };
  const drawn = {};
  const fillText = CanvasRenderingContext2D.prototype.fillText;
  CanvasRenderingContext2D.prototype.fillText = function (text, x, y, ...rest) {
    const {e, f, a, d} = this.getTransform();
    const dot = this.getImageData(Math.round(e + a * x - 3), Math.round(f + d * y - 3), 1, 1).data;
    const found = contrast(this.fillStyle, `rgb(${dot[0]}, ${dot[1]}, ${dot[2]})`);
    drawn[text] = Math.max(found, drawn[text] ?? 0); // a group of the page's own colours may have the same title
    return fillText.call(this, text, x, y, ...rest);
  };
  app.canvas.draw(true, true);
  CanvasRenderingContext2D.prototype.fillText = fillText;
  const found = app.graph.nodes.filter(({type}) => type.startsWith("I2VTRT_"))
    .map((node) => [`title of ${node.title}`, drawn[node.getTitle()] ?? 0]);
  for (const table of document.querySelectorAll(".dom-widget table"))
    found.push(["table", contrast(getComputedStyle(table).color, LiteGraph.NODE_DEFAULT_BGCOLOR)]);
  return found;
}"""
READABLE = 4.5
"""As WCAG 2.1 asks of words of usual size."""


@pytest.fixture
def light(server: ComfyServer, open_screen: Any, hosts_own: frozenset[str]) -> Iterator[Screen]:
    """A page in the light theme; later ones are dark again."""
    with open_screen(server.url, hosts_own, Locale="en", ColorPalette="light") as screen:
        yield screen
    set_settings(server.url, {"Comfy.ColorPalette": "dark"})


@pytest.mark.parametrize("name", [workflow_names.QUICK_START, workflow_names.PREBUILD])
def test_words_can_be_read_in_the_light_theme(name: str, light: Screen, pictures: Path) -> None:
    light.open_template(name)
    light.page.evaluate(ANSWER)
    for width, height in VIEWPORTS:
        light.show((width, height))
        light.page.screenshot(path=pictures / f"{name}-light-{width}x{height}.png")
    contrasts = light.page.evaluate(CONTRASTS)
    assert [what for what, _ in contrasts].count("table") == (2 if name == workflow_names.PREBUILD else 0)
    assert [(what, round(ratio, 2)) for what, ratio in contrasts if ratio < READABLE] == []
    assert light.console.faults() == []
