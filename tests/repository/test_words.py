"""`run.py words`: locale, README rows and help pages follow from the nodes' schemas, and what is stale is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.node_info import PREFIX, STORED, stored
from i2v_tensorrt.cli.words_command import COMMAND, ENGLISH, READMES, generated, main, outdated, write
from i2v_tensorrt.common.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
NEW = "I2VTRT_Stopwatch"
INFO: dict[str, Any] = {
    "display_name": "I2V Stopwatch",
    "description": "Says how long a clip of frames plays. Nothing is changed.",
    "input": {
        "required": {
            "frames": ["IMAGE", {"tooltip": "One image a frame."}],
            "unit": ["COMBO", {"tooltip": "How it is said.", "options": ["seconds", "frames"]}],
        }
    },
    "input_order": {"required": ["frames", "unit"]},
    "output": ["STRING"],
    "output_name": ["info"],
    "output_tooltips": ["The sentence that the node shows."],
    "output_node": True,
}
CHINESE: dict[str, Any] = {
    "display_name": "I2V 秒表",
    "description": "显示一段视频的时长。不作任何改变。",
    "inputs": {
        "frames": {"name": "帧", "tooltip": "每帧一张图像。"},
        "unit": {"name": "单位", "tooltip": "以何种单位显示。", "options": {"seconds": "秒", "frames": "frames"}},
    },
    "outputs": {"0": {"name": "信息", "tooltip": "节点上显示的那句话。"}},
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files that the command reads and writes."""
    for folder in ("locales", "web/docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in (*READMES, STORED):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def as_of_a_server() -> dict[str, Any]:
    """What a ComfyUI with the stored nodes and a new one would say, as far as the words below need it."""
    words = json.loads((ROOT / ENGLISH).read_text("utf-8"))
    infos: dict[str, Any] = {}
    for name, entry in words.items():
        info = json.loads(json.dumps(stored()[name]))
        for inputs in info["input"].values():
            for key, spec in inputs.items():
                spec[1]["tooltip"] = entry["inputs"][key]["tooltip"]
        tooltips = [output["tooltip"] for output in entry["outputs"].values()]
        words_of = {key: entry[key] for key in ("display_name", "description")}
        infos[name] = {**info, **words_of, "output_tooltips": tooltips}
    return {**infos, NEW: INFO}


def add_chinese(folder: Path) -> None:
    path = folder / "locales" / "zh" / "nodeDefs.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), NEW: CHINESE}), "utf-8")


def test_what_follows_from_the_stored_words_is_not_stale() -> None:
    stale = [path.relative_to(ROOT).as_posix() for path in outdated(ROOT, None)]
    assert stale == [], f"run: {COMMAND}"


def test_a_new_node_gets_all_its_words(copy: Path) -> None:
    add_chinese(copy)
    stale = outdated(copy, as_of_a_server())
    pages = [f"web/docs/{NEW}/{language}.md" for language in ("en", "zh")]
    assert {path.relative_to(copy).as_posix() for path in stale} == {
        STORED,
        ENGLISH,
        *READMES,
        *pages,
    }
    write(stale)
    assert outdated(copy, as_of_a_server()) == {}
    entries = json.loads((copy / STORED).read_text("utf-8"))
    assert {name for name in entries if not name.startswith(PREFIX)} < set(stored())
    assert (entries[NEW]["output"], "tooltip" in str(entries[NEW])) == (["STRING"], False)
    english, chinese = ((copy / name).read_text("utf-8") for name in READMES)
    assert "\n| **I2V Stopwatch** | Says how long a clip of frames plays. |\n" in english
    assert "\n| **I2V Stopwatch** | 显示一段视频的时长。 |\n" in chinese


def test_a_page_begins_with_all_that_the_schema_says(copy: Path) -> None:
    add_chinese(copy)
    write(outdated(copy, as_of_a_server()))
    english, chinese = ((copy / "web" / "docs" / NEW / f"{name}.md").read_text("utf-8") for name in ("en", "zh"))
    head = "# I2V Stopwatch\n\nSays how long a clip of frames plays. Nothing is changed."
    assert english.startswith(f"{head}\n\n## Inputs\n")
    assert "- `frames`: One image a frame.\n- `unit`: How it is said. Choices: `seconds`, `frames`.\n" in english
    assert english.endswith("\n## Outputs\n\n- `info`: The sentence that the node shows.\n")
    assert "- **帧** `frames`：每帧一张图像。\n" in chinese
    assert "- **单位** `unit`：以何种单位显示。可选：秒（`seconds`）、`frames`。\n" in chinese
    assert chinese.endswith("\n## 输出\n\n- **信息** `info`：节点上显示的那句话。\n")


def test_a_language_without_the_node_s_words_gets_no_page(copy: Path) -> None:
    write(outdated(copy, as_of_a_server()))
    assert (copy / "web" / "docs" / NEW / "en.md").is_file()
    assert not (copy / "web" / "docs" / NEW / "zh.md").exists()


def test_what_somebody_wrote_is_never_written_over(copy: Path) -> None:
    page = copy / "web" / "docs" / "I2VTRT_SaveVideo" / "en.md"
    page.write_text("by hand", "utf-8")
    assert page not in generated(copy, as_of_a_server())


@pytest.mark.parametrize("name", READMES)
def test_a_row_that_is_stale_is_found(copy: Path, name: str) -> None:
    readme = copy / name
    readme.write_text(readme.read_text("utf-8").replace("| **I2V Benchmark** | ", "| **I2V Benchmark** | x"), "utf-8")
    assert list(outdated(copy, None)) == [readme]


def test_a_readme_without_its_place_for_the_table_is_refused(copy: Path) -> None:
    (copy / "README.md").write_text("# No table", "utf-8")
    with pytest.raises(InputError, match="Expected the lines <!-- nodes"):
        outdated(copy, None)


def test_a_check_says_what_is_stale_and_writes_nothing(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMFYUI_DIR", raising=False)
    for home in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(home, str(copy))  # where no ComfyUI is
    assert main(["--check"], copy) == 0
    (page := copy / "web" / "docs" / "I2VTRT_SaveVideo" / "zh.md").unlink()
    assert main(["--check"], copy) == 1
    assert f"run: {COMMAND}" in capsys.readouterr().out and not page.exists()
    assert (main([], copy), page.is_file()) == (0, True)
    assert main(["--check"], copy) == 0
