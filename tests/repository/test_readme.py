"""The READMEs and the pages of docs/ say what is there, and the same in both languages."""

import ast
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from i2v_tensorrt.common.workflow_names import QUICK_START, api_workflow

ROOT = Path(__file__).resolve().parents[2]
READMES = ["README.md", "README.zh-CN.md"]
MAX_README_BYTES = 8192
CHINESE = ".zh-CN.md"
PAGES = sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))
ENGLISH_PAGES = [name for name in ["README.md", *PAGES] if not name.endswith(CHINESE)]
LINKED = [*READMES, *PAGES, "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"]
ROOMS = ("nodes", "runtime", "remote", "pipeline", "engine_builder", "common", "cli")
GAP = "…"
"""Stands for what a sentence fills in."""

each_readme = pytest.mark.parametrize("name", READMES)
each_language = pytest.mark.parametrize("suffix", [".md", CHINESE])


def text(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def code_blocks(markdown: str) -> list[str]:
    return re.findall(r"^```(?:sh|python)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)


def without_code(markdown: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", markdown, flags=re.MULTILINE | re.DOTALL)


def links(markdown: str) -> list[str]:
    """The targets of links and pictures, in Markdown and in HTML."""
    plain = without_code(markdown)
    return re.findall(r"\]\(([^)\s]+)\)", plain) + re.findall(r'(?:src|href)="([^"]+)"', plain)


def anchors(markdown: str) -> set[str]:
    """What `#` may be followed by in a link to the page, as GitHub makes it of its headings."""
    titles = re.findall(r"^#+ (.+)$", markdown, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a link on the page leads to an address, or to a file or heading that is there."""
    if "://" in link:
        return True
    target, _, anchor = unquote(link).partition("#")
    path = page.parent / target if target else page
    if not path.exists() or not path.resolve().is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(path.read_text("utf-8"))


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
    def test_it_is_short(self, name: str) -> None:
        assert (ROOT / name).stat().st_size <= MAX_README_BYTES

    def test_it_speaks_of_the_present_and_dates_figures_alone(self, name: str) -> None:
        dated = [line for line in text(name).splitlines() if re.search(r"\b20\d\d-\d\d-\d\d\b", line)]
        assert len(dated) <= 1 and all(line.startswith("| ") for line in dated)
        assert re.findall(r"\byet\b|还没|尚未", text(name)) == []

    def test_every_node_has_a_line(self, name: str) -> None:
        nodes = set(
            re.findall(r'display_name="(I2V [^"]+)"', "".join(map(text, map(str, (ROOT / "nodes").glob("*.py")))))
        )
        assert len(nodes) >= 7
        assert nodes == set(re.findall(r"^\| \*\*(I2V .+?)\*\* \|", text(name), re.MULTILINE))

    def test_it_leads_to_every_page(self, name: str) -> None:
        suffix = CHINESE if name.endswith(CHINESE) else ".md"
        pages = {page for page in PAGES if page.endswith(CHINESE) == (suffix == CHINESE)}
        assert pages - {link.partition("#")[0] for link in links(text(name))} == set()


@each_language
class TestPages:
    def test_every_error_that_they_explain_is_one_of_ours(self, suffix: str) -> None:
        quotes, known = quoted_errors(text(f"docs/troubleshooting{suffix}")), sentences()
        assert len(quotes) > 20
        assert [quote for quote in quotes if not any(says(sentence, quote) for sentence in known)] == []

    def test_every_workflow_has_a_row(self, suffix: str) -> None:
        rows = [line.split(" | ")[0] for line in text(f"docs/workflows{suffix}").splitlines() if line.startswith("|")]
        named = re.findall(r"`workflows/([^`/]+\.json)`", "\n".join(rows))
        assert sorted(named) == sorted(path.name for path in (ROOT / "workflows").glob("*.json"))

    def test_their_program_names_nodes_of_the_graph(self, suffix: str) -> None:
        prompt = json.loads(api_workflow(QUICK_START).read_text("utf-8"))
        named = re.findall(r'prompt\["(\d+)"\]\["inputs"\]\["(\w+)"\]', text(f"docs/api{suffix}"))
        assert named
        assert all(key in prompt[number]["inputs"] for number, key in named)


@pytest.mark.parametrize("name", LINKED)
def test_every_link_leads_somewhere(name: str) -> None:
    page = text(name)
    assert name not in READMES + PAGES or links(page)
    assert [link for link in links(page) if not leads_somewhere(ROOT / name, link)] == []


@pytest.mark.parametrize("link", ["docs/none.md", "#nowhere", "README.md#nowhere", "../README.md"])
def test_a_link_that_leads_nowhere_is_seen(link: str) -> None:
    assert not leads_somewhere(ROOT / "README.md", link)


@pytest.mark.parametrize("name", [*READMES, *PAGES])
def test_every_file_in_commands_is_there(name: str) -> None:
    files = re.findall(r"workflows/[\w/ .-]+?\.(?:json|png|jpg)\b", text(name))
    assert files or name not in READMES
    assert [file for file in files if not (ROOT / file).is_file()] == []


@pytest.mark.parametrize("name", ENGLISH_PAGES)
def test_both_languages_have_the_same_code_and_tables(name: str) -> None:
    english, chinese = text(name), text(name.removesuffix(".md") + CHINESE)
    assert code_blocks(english) == code_blocks(chinese)
    assert [line.count(" | ") for line in english.splitlines() if line.startswith("|")] == [
        line.count(" | ") for line in chinese.splitlines() if line.startswith("|")
    ]
    assert re.findall(r"^#+ ", english, re.MULTILINE) == re.findall(r"^#+ ", chinese, re.MULTILINE)
    assert len(links(english)) == len(links(chinese))


def test_both_languages_explain_the_same_errors() -> None:
    english, chinese = (text(f"docs/troubleshooting{suffix}") for suffix in (".md", CHINESE))
    assert quoted_errors(english) == quoted_errors(chinese)


def test_every_page_is_there_in_both_languages() -> None:
    chinese = [name for name in PAGES if name.endswith(CHINESE)]
    assert len(chinese) >= 5
    assert [name.removesuffix(CHINESE) + ".md" for name in chinese] == [name for name in ENGLISH_PAGES if name in PAGES]
