"""Every node in the page: fresh from the library it shows all its words, and its help opens, in each language."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.browser.screen import Screen
from i2v_tensorrt.tests.helpers.locales import LANGUAGES, LOCALES, node_defs

WEB = LOCALES.parent / "web"
NODES = sorted(node_defs("en"))
# Not by clear(): ids would begin anew, and the page keeps the values of widgets by them.
ADD = """(type) => {
  for (const other of [...app.graph.nodes]) app.graph.remove(other);
  const node = LiteGraph.createNode(type);
  node.pos = [300, 200];
  app.graph.add(node);
  app.canvas.ds.scale = 1;
  app.canvas.ds.offset = [0, 0];
  app.canvas.setDirty(true, true);
  const canvas = app.canvas.canvas.getBoundingClientRect();
  return [canvas.left + node.pos[0] + 60, canvas.top + node.pos[1] - 15];
}"""
SHOWN = "() => app.graph.nodes[0].widgets.filter((w) => app.graph.nodes[0].isWidgetVisible(w)).map((w) => w.name)"
# Rows between the first and the last of those that are of one height, less the rows that are drawn there.
GAPS = """() => {
  app.canvas.draw(true, true);
  const node = app.graph.nodes[0];
  const rows = node.widgets.filter((w) => node.isWidgetVisible(w) && !w.element);
  return Math.round((rows.at(-1).y - rows[0].y) / (LiteGraph.NODE_WIDGET_HEIGHT + 4)) + 1 - rows.length;
}"""
MENU = "() => app.canvas.getNodeMenuOptions(app.graph.nodes[0]).map((entry) => entry?.content)"
LOAD = """async (change) => {
  const graph = app.graph.serialize();
  graph.nodes[0].widgets_values = Object.values({...Object.fromEntries(
    app.graph.nodes[0].widgets.map(({name, value}) => [name, value])), ...change});
  await app.loadGraphData(graph);
}"""
FOLDED = {
    "I2VTRT_Conditioning": {"motion_bucket_id", "noise_aug_strength", "noise_aug_seed", "if_too_large"},
    "I2VTRT_DDIMSampler": {"eta", "min_guidance_scale", "shift", "late_guidance_scale"},
    "I2VTRT_EngineBuilder": {"weights"},
    "I2VTRT_EngineLoader": {"weights"},
}
HELP_BUTTON = "[data-testid=info-button], .selection-toolbox button:has(.pi-question-circle)"
HELP = ".node-help-content"


@pytest.fixture(scope="module", params=LANGUAGES)
def screen(
    request: pytest.FixtureRequest, server: ComfyServer, open_screen: Any, hosts_own: frozenset[str]
) -> Iterator[Screen]:
    """A page in each language for all nodes."""
    with open_screen(server.url, hosts_own, Locale=request.param) as screen:
        screen.language = request.param
        yield screen


@pytest.mark.parametrize("node", NODES)
def test_a_fresh_one_shows_all_its_words_and_its_help(node: str, screen: Screen, pictures: Path) -> None:
    title = screen.page.evaluate(ADD, node)
    screen.settle(700)
    faults = screen.faults()
    screen.page.mouse.click(*title)
    screen.page.locator(HELP_BUTTON).first.click()
    heading = (WEB / "docs" / node / f"{screen.language}.md").read_text("utf-8").splitlines()[0].removeprefix("# ")
    screen.page.locator(HELP).get_by_text(heading, exact=True).first.wait_for(timeout=10_000)
    screen.settle(700)
    picture = screen.page.locator(f"{HELP} img").first
    assert picture.evaluate("(image) => image.complete && image.naturalWidth > 0")
    wide = screen.page.locator(HELP).evaluate("(help) => help.scrollWidth - help.clientWidth")
    assert wide <= 0, "the help has to be scrolled sideways"
    screen.page.screenshot(path=pictures / f"{node}-{screen.language}.png")
    faults += screen.console.faults()
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("node", sorted(FOLDED))
def test_what_few_need_is_folded_away_until_it_is_wanted_or_set(node: str, screen: Screen) -> None:
    page = screen.page
    page.evaluate(ADD, node)
    names = set(page.evaluate("() => app.graph.nodes[0].widgets.map((widget) => widget.name)"))
    height = page.evaluate("() => app.graph.nodes[0].size[1]")
    assert names - set(page.evaluate(SHOWN)) == FOLDED[node]
    assert page.evaluate(GAPS) == 0
    assert "Show Advanced" in page.evaluate(MENU)
    page.evaluate("() => app.graph.nodes[0].toggleAdvanced()")
    assert set(page.evaluate(SHOWN)) == names
    assert page.evaluate("() => app.graph.nodes[0].size[1]") >= height
    page.evaluate("() => app.graph.nodes[0].toggleAdvanced()")
    page.evaluate(LOAD, {})
    assert names - set(page.evaluate(SHOWN)) == FOLDED[node]
    page.evaluate(LOAD, {sorted(FOLDED[node])[0]: 1})
    assert set(page.evaluate(SHOWN)) == names
