"""What ComfyUI's page lists of the pack: a title for each workflow, in an order, each with a picture of its own."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from i2v_tensorrt.cli.thumbnails.canvas import SIDE
from i2v_tensorrt.cli.thumbnails.cards import CARDS
from i2v_tensorrt.cli.thumbnails.command import MOST_BYTES
from i2v_tensorrt.common.pack_paths import BUNDLED_NAME
from i2v_tensorrt.common.workflow_names import NAMES, QUICK_START, api_workflow

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
MOST_LETTERS = 32
"""What one line of a card holds in the narrowest window."""
SCRIPT = (ROOT / "web" / "templates.js").read_text("utf-8")

FILES = ("checkpoint", "ckpt_name", "model_name", "file")
"""Inputs that name a file of a network."""

each_name = pytest.mark.parametrize("name", NAMES)


def test_the_page_s_list_is_ours_and_begins_with_the_quick_start() -> None:
    listed = re.search(r"^const TITLES = \[\n(.*?)^\];", SCRIPT, re.MULTILINE | re.DOTALL)
    assert listed is not None
    assert tuple(re.findall(r'^  "(.+)",$', listed[1], re.MULTILINE)) == NAMES == tuple(CARDS)
    assert NAMES[0] == QUICK_START and len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("pattern", ["*.json", "api/*.json", "*.jpg"])
def test_every_file_has_its_place_in_the_list(pattern: str) -> None:
    assert sorted(path.name.removesuffix(path.suffix) for path in WORKFLOWS.glob(pattern)) == sorted(NAMES)


@each_name
def test_a_title_is_words_of_one_line(name: str) -> None:
    assert len(name) <= MOST_LETTERS and re.fullmatch(r"[A-Z][A-Za-z0-9. -]+", name)
    assert " " in name and name == name.strip() and not name.endswith(".")


@each_name
def test_its_picture_is_square_and_small(name: str) -> None:
    path = WORKFLOWS / f"{name}.jpg"  # the format that the page asks for
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("JPEG", (SIDE, SIDE))
    assert path.stat().st_size <= MOST_BYTES


@each_name
def test_a_card_says_whether_the_workflow_needs_a_download(name: str) -> None:
    prompt = json.loads(api_workflow(name).read_text("utf-8"))
    files = {node["inputs"][key] for node in prompt.values() for key in FILES if key in node["inputs"]}
    assert files and CARDS[name].is_ready == (files == {BUNDLED_NAME})


def test_no_picture_serves_two() -> None:
    assert len({sha256((WORKFLOWS / f"{name}.jpg").read_bytes()).digest() for name in NAMES}) == len(NAMES)
