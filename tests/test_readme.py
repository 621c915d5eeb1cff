"""The READMEs say what is there, and the same in both languages."""

import ast
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
READMES = ["README.md", "README.zh-CN.md"]
ROOMS = ("nodes", "runtime", "remote", "pipeline", "engine_builder", "common", "cli")
GAP = "…"
"""Stands for what a sentence fills in."""

each_readme = pytest.mark.parametrize("name", READMES)


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def code_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```(?:sh|python)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def quoted_errors(markdown: str) -> list[str]:
    """The sentences in the first column of the table of errors, which is the last table."""
    rows = [line for line in markdown.splitlines() if line.startswith("| ")]
    table = rows[max(n for n, row in enumerate(rows) if row.startswith("| ---")) + 1 :]
    return [quote for row in table for quote in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


def sentences() -> set[str]:
    """Every text in the rooms' sources, with gaps where something is filled in."""
    found = set()
    for path in (path for room in ROOMS for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
                found.add("".join(str(part) for part in parts))
    return found


def says(sentence: str, quote: str) -> bool:
    """Whether the parts of the quote stand in the sentence in their order."""
    parts = [re.escape(part.strip()) for part in quote.split(GAP) if part.strip()]
    return re.search(".*".join(parts), sentence, re.DOTALL) is not None


@each_readme
class TestReadme:
    def test_every_error_that_it_explains_is_one_of_ours(self, name: str) -> None:
        quotes, known = quoted_errors(text(name)), sentences()
        assert len(quotes) > 20
        assert [quote for quote in quotes if not any(says(sentence, quote) for sentence in known)] == []

    def test_every_link_leads_somewhere(self, name: str) -> None:
        links = re.findall(r"\]\(([^)#]+)\)", text(name))
        assert links
        assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []

    def test_every_node_has_a_line(self, name: str) -> None:
        nodes = set(
            re.findall(r'display_name="(I2V [^"]+)"', "".join(map(text, map(str, (ROOT / "nodes").glob("*.py")))))
        )
        assert len(nodes) >= 7
        assert nodes == set(re.findall(r"^\| \*\*(I2V .+?)\*\* \|", text(name), re.MULTILINE))

    def test_every_file_in_its_commands_is_there(self, name: str) -> None:
        files = re.findall(r"workflows/[\w/]+\.\w+", text(name))
        assert len(files) > 5
        assert [file for file in files if not (ROOT / file).is_file()] == []

    def test_its_program_names_nodes_of_the_graph(self, name: str) -> None:
        prompt = json.loads(text("workflows/api/image_to_video.json"))
        named = re.findall(r'prompt\["(\d+)"\]\["inputs"\]\["(\w+)"\]', text(name))
        assert named
        assert all(key in prompt[number]["inputs"] for number, key in named)


def test_both_languages_have_the_same_code_and_tables() -> None:
    english, chinese = (text(name) for name in READMES)
    assert len(code_blocks(english)) > 5
    assert code_blocks(english) == code_blocks(chinese)
    assert quoted_errors(english) == quoted_errors(chinese)
    assert [line.count(" | ") for line in english.splitlines() if line.startswith("|")] == [
        line.count(" | ") for line in chinese.splitlines() if line.startswith("|")
    ]
    assert english.count("\n## ") == chinese.count("\n## ")
