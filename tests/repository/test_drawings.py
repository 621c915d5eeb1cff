"""The drawn pictures show what the code is now."""

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "make_pictures.py"))
PICTURES: dict[str, Any] = SCRIPT["pictures"]()


@pytest.mark.parametrize("name", sorted(PICTURES))
def test_a_picture_is_drawn_from_what_the_code_is_now(name: str) -> None:
    with Image.open(ROOT / name) as picture:
        kept = json.loads(picture.info[SCRIPT["KEY"]])
    assert kept == json.loads(json.dumps(PICTURES[name][0])), "run: python docs/make_pictures.py"


def test_the_code_is_read() -> None:
    assert len(SCRIPT["nodes"]()) >= 7
    assert SCRIPT["chain"]()[0] == "I2VTRT_ModelLoader"


def test_every_node_can_be_drawn(tmp_path: Path) -> None:
    SCRIPT["main"](tmp_path)
    for name in PICTURES:
        with Image.open(tmp_path / name) as drawn, Image.open(ROOT / name) as kept:
            assert drawn.size == kept.size
            assert len(drawn.getcolors(256) or ()) > 5


def test_sizes_that_the_registry_asks_for() -> None:
    with Image.open(ROOT / "docs" / "icon.png") as icon, Image.open(ROOT / "docs" / "banner.png") as banner:
        assert icon.size == (400, 400)
        assert banner.width * 9 == banner.height * 21
