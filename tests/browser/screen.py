"""ComfyUI's page as a person meets it: open a template, press Run, look."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from i2v_tensorrt.common.workflow_names import QUICK_START

HERE = Path(__file__).resolve().parent
PACK = "I2V-TensorRT"
VIEWPORTS = ((1280, 800), (1920, 1080))
LOAD_MS = 60_000
RUN_S = 900
PROBES = (HERE / "probes.js").read_text("utf-8")
RUN_ENDED = """() => {
  window.i2vEnded = null;
  for (const kind of ["execution_success", "execution_error", "execution_interrupted"])
    app.api.addEventListener(kind, ({detail}) => window.i2vEnded = {kind, detail: detail ?? null});
}"""
GRAPH = """() => {
  const boxes = [...app.graph.nodes, ...app.graph._groups].map((each) => each.getBounding?.() ?? each._bounding);
  const {scale, offset} = app.canvas.ds;
  const canvas = app.canvas.canvas.getBoundingClientRect();
  const low = [0, 1].map((n) => Math.min(...boxes.map((box) => box[n])));
  const high = [0, 1].map((n) => Math.max(...boxes.map((box) => box[n] + box[n + 2])));
  const [x, y] = low.map((value, n) => (value + offset[n]) * scale + [canvas.left, canvas.top][n] - 8);
  return {x, y, width: (high[0] - low[0]) * scale + 16, height: (high[1] - low[1]) * scale + 16};
}"""
CARD = "template-workflow-"
CARD_OF_ANY = f"[data-testid^='{CARD}']"
CARDS = (
    f"""() => [...document.querySelectorAll("{CARD_OF_ANY}")].map((card) => card.dataset.testid.slice({len(CARD)}))"""
)
HIDE_FURNITURE = ".litegraph-minimap, .p-toast, .side-tool-bar-container, .actionbar { visibility: hidden !important }"
MOVING = """async () => {
  const videos = [...document.querySelectorAll("video")];
  const times = videos.map((video) => video.currentTime);
  await new Promise((resolve) => setTimeout(resolve, 250));
  return videos.length > 0 && videos.every((v, n) => v.readyState >= 2 && !v.paused && v.currentTime !== times[n]);
}"""


@dataclass
class Console:
    """What the page complained of, and what the host's page complains of without us."""

    hosts_own: frozenset[str] = frozenset()
    said: list[str] = field(default_factory=list)

    def watch(self, page: Any) -> None:
        """Listens from now on; the page reports a fault in an extension's listener as a warning."""
        page.on("console", lambda message: self._note(message.type, message.text, message.location.get("url", "")))
        page.on("pageerror", lambda error: self._note("error", f"{error}\n{error.stack}", ""))

    def faults(self) -> list[str]:
        """What has come since the last call: all that names the pack, and errors that the host does not make alone.

        A file that the server lacks is a fault of ours where it is one that a graph or a node has asked for.
        """
        return [
            line for line in self.said if NAMES_US.search(line) or not (kind(line) in self.hosts_own or lacks(line))
        ]

    def _note(self, level: str, text: str, url: str) -> None:
        line = f"{level}: {text} {url}"
        if THUMBNAIL in line:  # that each workflow has a picture is for other tests
            return
        if level == "error" or (level == "warning" and NAMES_US.search(line)):
            self.said.append(line)


THUMBNAIL = f"/workflow_templates/{PACK}/"
NAMES_US = re.compile(r"I2VTRT_|i2v[-_]?tensorrt|moving\.js|/view\?", re.IGNORECASE)
"""The pack, one of its nodes or scripts, or a file of a graph."""


def lacks(line: str) -> bool:
    """Whether the server has answered that it lacks a file."""
    return "Failed to load resource" in line and "404" in line


def kind(line: str) -> str:
    """A complaint without what differs from time to time: numbers, and the stack behind it."""
    return re.sub(r"\d+(\.\d+)?", "#", line.splitlines()[0])


@dataclass
class Screen:
    """One page of a browser on a server."""

    page: Any
    url: str
    console: Console

    def open(self) -> None:
        """Loads the page and waits until a graph could be worked on."""
        self.page.route("**/templates/index*.json", or_none)
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.page.wait_for_function("() => window.app?.graph && window.app.extensionManager", timeout=LOAD_MS)
        self.page.locator(".templates-tab-button").wait_for(timeout=LOAD_MS)
        self.settle()

    def settle(self, milliseconds: int = 1500) -> None:
        """Waits for what the page does on its own: pictures that load, the view that moves."""
        self.page.wait_for_timeout(milliseconds)

    def open_template(self, name: str) -> None:
        """By the templates browser, as a person would."""
        self.page.locator(".templates-tab-button").click()
        self.show_templates()
        self.choose_template(name)

    def show_templates(self) -> None:
        """The pack's, in the templates browser, which is open."""
        self.page.get_by_text(PACK, exact=True).first.click()
        self.page.get_by_test_id(f"{CARD}{QUICK_START}").wait_for()
        self.settle()

    def templates(self) -> list[str]:
        """The titles of the cards that the templates browser shows, in order."""
        return self.page.evaluate(CARDS)

    def choose_template(self, name: str) -> None:
        """In the templates browser, which shows the pack's; those far down come as one goes there."""
        card = self.page.get_by_test_id(f"{CARD}{name}")
        while not card.count():
            before = len(self.templates())
            self.page.locator(CARD_OF_ANY).last.scroll_into_view_if_needed()
            self.settle()
            assert len(self.templates()) > before, f"no template {name}"
        card.click()
        self.page.wait_for_function("() => app.graph.nodes.some((node) => node.comfyClass?.startsWith('I2VTRT_'))")
        self.settle()

    def show(self, viewport: tuple[int, int]) -> None:
        """Gives the window a size and fits the graph into it, as the key for that does."""
        self.page.set_viewport_size({"width": viewport[0], "height": viewport[1]})
        self.settle(500)
        self.page.evaluate("() => app.extensionManager.command.execute('Comfy.Canvas.FitView')")
        self.settle()

    def picture_of_graph(self, path: Path) -> None:
        """The graph alone, as documents show it."""
        self.page.screenshot(path=path, clip=self.page.evaluate(GRAPH), style=HIDE_FURNITURE)

    def press_run(self) -> None:
        """And nothing else."""
        self.page.evaluate(RUN_ENDED)
        self.page.get_by_test_id("queue-button").click()

    def wait_until_run(self) -> dict[str, Any]:
        """How the run ended; the page shows what it refuses to queue in an overlay, which counts as an end."""
        overlay = "document.querySelector('[data-testid=error-overlay-messages]')?.innerText"
        self.page.wait_for_function(f"() => window.i2vEnded || {overlay}", timeout=RUN_S * 1000)
        return self.page.evaluate(f"() => window.i2vEnded ?? {{kind: 'refused', detail: {overlay}}}")

    def videos_move(self) -> bool:
        """Whether every video that is shown plays, and there is one."""
        return self.page.evaluate(MOVING)

    def wait_until_videos_move(self, timeout_s: float = 20) -> None:
        """Asks again and again: the page's own waiting takes a promise for an answer."""
        deadline = time.monotonic() + timeout_s
        while not self.videos_move():
            assert time.monotonic() < deadline, "no video plays"

    def faults(self) -> list[str]:
        """What a person would see wrong with the graph, in sentences, and what the console says of it."""
        shown = self.page.evaluate(f"({PROBES.strip().removesuffix(';').split(chr(10), 1)[1]})()")
        refused = self.page.locator("[data-testid=error-overlay-messages]").all_inner_texts()
        return [*shown, *refused, *self.console.faults()]


def or_none(route: Any) -> None:
    """The core's list of templates, or an empty one: a host may lack them, and older pages then open no other."""
    answer = route.fetch()
    if answer.ok:
        route.fulfill(response=answer)
    else:
        route.fulfill(json=[])


def set_settings(url: str, settings: dict[str, Any], user: str = "") -> None:
    """Settings of the page, which the server keeps, for each user where it has several."""
    post(f"{url}/settings", settings, user)


def post(url: str, content: object, user: str = "") -> Any:
    """What our own server answers to JSON of a user's, parsed; None for an empty answer."""
    headers = {"Content-Type": "application/json", **({"comfy-user": user} if user else {})}
    request = urllib.request.Request(url, json.dumps(content).encode(), headers)  # noqa: S310 - our own server
    with urllib.request.urlopen(request) as answer:  # noqa: S310 - our own server
        return json.loads(answer.read() or "null")
