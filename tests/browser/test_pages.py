"""Several pages on one server, several workflows on one page: what the pack shows stands where it belongs."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.common.workflow_names import QUICK_START
from i2v_tensorrt.pipeline.media.formats import FORMATS, VideoOptions
from i2v_tensorrt.pipeline.media.video import write_video
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyServer
from i2v_tensorrt.tests.browser.screen import NAMES_US, Screen, set_settings

# What the pack's scripts and lines leave on nodes, by node id.
MARKS = """() => Object.fromEntries(app.graph.nodes.map((node) => [node.id, [
  ...(node.widgets ?? []).map(({name}) => name).filter((name) => /i2v-loop|node-text/.test(name)),
  ...(node.i2vSheet ? ["sheet"] : []),
]]).filter(([, marks]) => marks.length))"""
SAMPLER = "app.graph.nodes.find((node) => node.comfyClass === 'I2VTRT_DDIMSampler')"
# Another workflow with a node of another kind that has the sampler's id. The page's own preview and line of text go by
# that alone.
STRANGER = """(id) => {
  const node = LiteGraph.createNode("PreviewImage");
  node.id = id;
  app.graph.add(node);
  return [node.id, node.comfyClass];
}"""
STRANGERS_OWN = """(id) => {
  const node = app.graph.getNodeById(id);
  const ours = (node.widgets ?? []).map(({name}) => name).filter((name) => name.startsWith("i2v"));
  return [Object.hasOwn(node, "onDrawBackground"), ours, !!node.i2vSheet, !!node.i2vLoop];
}"""
OPEN = """async ([name, type, content]) => {
  app.graph.clear();
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  try { await app.handleFile(new File([bytes], name, {type})); } catch {}
  await new Promise((resolve) => setTimeout(resolve, 1000));
  return app.graph.nodes.map((node) => node.comfyClass);
}"""
CLOCK = """() => {
  window.i2vNow = Date;
  Date = class extends i2vNow {
    constructor(...given) { super(...(given.length ? given : [2026, 2, 4, 5, 6, 7])); }
  };
}"""
FILLED = """async (prefix) => {
  const saver = app.graph.nodes.find((node) => node.comfyClass === "I2VTRT_SaveVideo");
  saver.widgets.find(({name}) => name === "filename_prefix").value = prefix;
  const {output} = await app.graphToPrompt();
  return output[saver.id].inputs.filename_prefix;
}"""


@pytest.fixture
def two(server: ComfyServer, open_screen: Any, hosts_own: frozenset[str]) -> Iterator[tuple[Screen, Screen]]:
    """Two people with the quick start before them."""
    with (
        open_screen(server.url, hosts_own, Locale="en", **{"VueNodes.Enabled": False}) as one,
        open_screen(server.url, hosts_own) as other,
    ):
        one.open_template(QUICK_START)
        other.open_template(QUICK_START)
        yield one, other


def seed(screen: Screen, value: int) -> None:
    """Another seed, or the server would have the clip at hand."""
    screen.page.evaluate(f"(seed) => {SAMPLER}.widgets.find(({{name}}) => name === 'seed').value = seed", value)


def test_a_run_shows_itself_to_the_one_who_started_it(two: tuple[Screen, Screen], server: ComfyServer) -> None:
    one, other = two
    before = other.page.evaluate(MARKS)
    seed(one, 22)
    one.press_run()
    assert one.wait_until_run()["kind"] == "execution_success"
    marks = one.page.evaluate(MARKS)
    assert [found for found in marks.values() if "i2v-loop" in found and "sheet" in found]
    assert other.page.evaluate(MARKS) == before == {}

    prompt = json.loads((PACK / "workflows" / "api" / f"{QUICK_START}.json").read_text("utf-8"))
    (sampler,) = [node for node in prompt.values() if node["class_type"] == "I2VTRT_DDIMSampler"]
    sampler["inputs"]["seed"] = 23
    client = ComfyClient(server.url)
    body = json.dumps({"prompt": prompt}).encode()  # as the README's curl does, without a name
    request = urllib.request.Request(f"{server.url}/prompt", body)  # noqa: S310 - our own server
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
        prompt_id = json.load(answer)["prompt_id"]
    while client.find_history(prompt_id) is None:
        other.settle(200)
    assert other.page.evaluate(MARKS) == {}
    assert not one.faults() and not other.faults()


def test_a_run_leaves_the_nodes_of_another_workflow_alone(two: tuple[Screen, Screen]) -> None:
    one, _ = two
    sampler = one.page.evaluate(f"() => {SAMPLER}.id")
    seed(one, 24)
    one.press_run()
    one.page.evaluate("() => app.extensionManager.command.execute('Comfy.NewBlankWorkflow')")
    one.page.wait_for_function("() => app.graph.nodes.length === 0")
    assert one.page.evaluate(STRANGER, sampler) == [sampler, "PreviewImage"]
    assert one.wait_until_run()["kind"] == "execution_success"
    assert one.page.evaluate(STRANGERS_OWN, sampler) == [False, [], False, False]


def test_a_page_that_is_loaded_anew_in_the_middle_goes_on(two: tuple[Screen, Screen], server: ComfyServer) -> None:
    one, _ = two
    seed(one, 25)
    one.press_run()
    one.page.reload(wait_until="domcontentloaded")
    one.page.wait_for_function("() => window.app?.graph && window.app.extensionManager")
    client = ComfyClient(server.url)
    while any(client.queued()):
        one.settle(200)
    one.settle()
    for marks in one.page.evaluate(MARKS).values():
        assert set(marks) <= {"i2v-loop", "sheet", "$$node-text-preview"}
    assert not one.console.faults()


def test_nodes_drawn_as_html_show_the_pages_own_preview(server: ComfyServer, open_screen: Any) -> None:
    """The switch for that is a setting of the page, which is put back."""
    try:
        with open_screen(server.url, Locale="en", **{"VueNodes.Enabled": True}) as screen:
            screen.open_template(QUICK_START)
            assert screen.page.evaluate("() => LiteGraph.vueNodesMode")
            seed(screen, 26)
            screen.press_run()
            assert screen.wait_until_run()["kind"] == "execution_success"
            assert not [marks for marks in screen.page.evaluate(MARKS).values() if "i2v-loop" in marks]
            assert not [line for line in screen.console.faults() if NAMES_US.search(line)]
    finally:
        set_settings(server.url, {"Comfy.VueNodes.Enabled": False})


@pytest.fixture
def screen(server: ComfyServer, open_screen: Any, hosts_own: frozenset[str]) -> Iterator[Screen]:
    with open_screen(server.url, hosts_own, Locale="en") as screen:
        screen.open_template(QUICK_START)
        yield screen


def test_placeholders_are_filled_as_in_the_cores_save_nodes(screen: Screen) -> None:
    seed(screen, 4711)
    screen.page.evaluate(CLOCK)
    filled = [screen.page.evaluate(FILLED, prefix) for prefix in ("a/%date:yyyy-MM-dd%", "%date:hh:mm%", "%year%")]
    screen.page.evaluate("() => { Date = i2vNow; }")
    assert filled == ["a/2026-03-04", "05-06", "%year%"]
    for name in (screen.page.evaluate(f"() => {SAMPLER}.title"), "I2VTRT_DDIMSampler"):
        assert screen.page.evaluate(FILLED, f"%{name}.seed%-%No Node.x%") == "4711-%No Node.x%"
    assert not screen.console.faults()


def test_scripts_of_a_second_copy_register_nothing(screen: Screen) -> None:
    names = "() => app.extensions.map(({name}) => name).filter((name) => name.startsWith('I2VTensorRT')).sort()"
    before = screen.page.evaluate(names)
    for script in ("moving.js", "i2v_tensorrt.js"):
        screen.page.evaluate(f"() => import('/extensions/I2V-TensorRT/{script}?second')")
    assert screen.page.evaluate(names) == before == ["I2VTensorRT.Face", "I2VTensorRT.Moving"]
    assert not screen.faults()


def test_the_page_opens_the_workflow_of_the_formats_that_say_so(screen: Screen, tmp_path: Path) -> None:
    workflow = json.loads((PACK / "workflows" / f"{QUICK_START}.json").read_text("utf-8"))
    endless = {"is_changed": [float("nan")]}  # as nodes say that they run at every prompt
    found = {}
    for key, spec in FORMATS.items():
        path = tmp_path / f"{key}{spec.suffix}"
        metadata = {"prompt": {"1": endless}, "workflow": workflow}
        write_video(torch.rand(3, 64, 64, 3), path, VideoOptions(key, 8), metadata=metadata)
        content = base64.b64encode(path.read_bytes()).decode()
        found[key] = "I2VTRT_SaveVideo" in screen.page.evaluate(OPEN, [path.name, spec.mime, content])
    assert found == {key: spec.has_workflow for key, spec in FORMATS.items()}
