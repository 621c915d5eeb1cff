"""As somebody who has just installed the pack: from a clean ComfyUI to a moving video."""

import json
import time
from pathlib import Path
from typing import Any

from i2v_tensorrt.common.pack_paths import PACK
from i2v_tensorrt.common.workflow_names import QUICK_START
from i2v_tensorrt.tests.browser.screen import VIEWPORTS

COUNT_CLICKS = "addEventListener('pointerdown', () => window.i2vClicks = (window.i2vClicks ?? 0) + 1, true)"

SAMPLER_S_STILLS = "() => app.graph.nodes.find((node) => node.type === 'I2VTRT_DDIMSampler').imgs?.length ?? 0"


def test_four_clicks_from_a_clean_comfyui_to_a_moving_video(
    chromium: Any, start_clean: Any, open_screen: Any, tmp_path: Path
) -> None:
    out = PACK / "out" / "browser" / "new-user"
    out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with start_clean(tmp_path) as server, open_screen(server.url) as screen:
        loaded_s = time.monotonic() - started
        page = screen.page
        page.evaluate(COUNT_CLICKS)
        page.screenshot(path=out / "1-first-page.png")
        if not page.get_by_text("I2V-TensorRT", exact=True).first.is_visible():
            page.locator(".templates-tab-button").click()
        screen.show_templates()
        page.screenshot(path=out / "2-templates.png")
        assert screen.templates()[0] == QUICK_START, "the page has asked for the list before our script is there"
        screen.choose_template(QUICK_START)
        page.screenshot(path=out / "3-opened.png")
        assert not screen.videos_move()
        pressed = time.monotonic()
        screen.press_run()
        ended = screen.wait_until_run()
        assert ended["kind"] == "execution_success", ended
        screen.wait_until_videos_move()
        moving_s = time.monotonic() - pressed
        # The sampler's preview plays too, in place of the page's own still one.
        playing = page.locator(".i2v-loop").evaluate("(loop) => loop.getAnimations().map((each) => each.playState)")
        assert playing == ["running"]
        assert page.evaluate(SAMPLER_S_STILLS) == 0
        clicks = page.evaluate("() => window.i2vClicks")
        for viewport in VIEWPORTS:
            screen.show(viewport)
            page.screenshot(path=out / f"4-moving-{viewport[0]}x{viewport[1]}.png")
        found = {
            "clicks": clicks,
            "start_of_comfyui_and_page_s": round(loaded_s, 1),
            "run_to_moving_video_s": round(moving_s, 1),
        }
        (out / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
        assert 1 < clicks <= 4
