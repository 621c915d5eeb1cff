"""A browser and a live ComfyUI for the tests of this folder; skipped where either is missing."""

import json
import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, link_pack, start_server
from i2v_tensorrt.tests.browser.screen import VIEWPORTS, Console, Screen, kind, set_settings
from i2v_tensorrt.tests.live.conftest import ARGUMENTS, device_arguments

HERE = Path(__file__).resolve().parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge")
# No outside host is asked for anything by the browser itself.
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-gpu")

UNREAD = ("checkpoints/svd_xt.safetensors", "upscale_models/RealESRGAN_x4plus.pth", "onnx/u2net.onnx")
"""Files that workflows name, of networks that are not here."""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The system's browser without a window; CHROMIUM may name it."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    names = (os.environ.get("CHROMIUM"), *BROWSERS)
    found = next((path for path in (shutil.which(name) for name in names if name) if path), None)
    if found is None:
        pytest.skip(f"no browser found: CHROMIUM is not set and there is none of {', '.join(BROWSERS)}")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(QUIET))
        yield browser
        browser.close()


StartClean = Callable[..., Any]


@pytest.fixture(scope="session")
def start_clean(host: ComfyHost) -> StartClean:
    """Starts a ComfyUI that has the pack and nothing else, in a base directory of its own.

    COMFYUI_FRONTEND names the page's own folder where it is not the one that is installed, as for an older ComfyUI.
    """
    frontend = os.environ.get("COMFYUI_FRONTEND")
    page = ["--front-end-root", frontend] if frontend else []

    @contextmanager
    def start(base_directory: Path, *more: str) -> Iterator[ComfyServer]:
        link_pack(PACK, base_directory)
        arguments = [*ARGUMENTS, "--preview-method", "latent2rgb", *device_arguments(), *page, *more]
        with start_server(host, base_directory, arguments) as running:
            yield running

    return start


@pytest.fixture(scope="session")
def server(chromium: Any, start_clean: StartClean, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    """The server that the tests share; its engines are built once.

    On one thread: those that wait for each other only slow a machine down that the browser keeps busy too.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        base_directory = tmp_path_factory.mktemp("comfyui")
        # The page marks a loader whose file is not there; these are never read.
        for name in UNREAD:
            (base_directory / "models" / name).parent.mkdir(parents=True, exist_ok=True)
            (base_directory / "models" / name).touch()
        with start_clean(base_directory) as running:
            set_settings(running.url, {"Comfy.TutorialCompleted": True})
            yield running


OpenScreen = Callable[..., Any]


@pytest.fixture(scope="session")
def open_screen(chromium: Any) -> OpenScreen:
    """Opens a page in a profile of its own; `user` is the id of one whom a server with several users knows."""

    @contextmanager
    def opened(url: str, hosts_own: frozenset[str] = frozenset(), user: str = "", **settings: Any) -> Iterator[Screen]:
        if settings:  # the panel of a page before would cover the graph
            chosen = {"RightSidePanel.IsOpen": False, **settings}
            set_settings(url, {f"Comfy.{name}": value for name, value in chosen.items()}, user)
        width, height = VIEWPORTS[0]
        context = chromium.new_context(viewport={"width": width, "height": height})
        if user:  # as the page itself does once somebody has been chosen
            keys = {"Comfy.userId": user, "Comfy.userName": user}
            context.add_init_script(
                f"Object.entries({json.dumps(keys)}).forEach((each) => localStorage.setItem(...each))"
            )
        screen = Screen(context.new_page(), url, Console(hosts_own))
        screen.console.watch(screen.page)
        try:
            screen.open()
            yield screen
        finally:  # or a page that did not open in time goes on drawing
            context.close()

    return opened


@pytest.fixture(scope="session")
def hosts_own(server: ComfyServer, open_screen: OpenScreen) -> frozenset[str]:
    """What the page complains of before anything of ours is on it."""
    with open_screen(server.url, Locale="en") as screen:
        screen.page.locator(".templates-tab-button").click()
        screen.settle()
        return frozenset(kind(line) for line in screen.console.said)


@pytest.fixture(scope="session")
def pictures(server: ComfyServer) -> Path:
    return pictures_of(server)


def pictures_of(server: ComfyServer) -> Path:
    """Where the pictures of a run go, by ComfyUI's version."""
    with urllib.request.urlopen(f"{server.url}/system_stats") as response:  # noqa: S310 - our own server
        version = json.load(response)["system"]["comfyui_version"]
    folder = PACK / "out" / "browser" / version
    folder.mkdir(parents=True, exist_ok=True)
    return folder
