"""Texts on the nodes for people, made of a locale's entries: README's rows, and the skeleton of a help page."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..common.errors import InputError

BEGIN, END = "<!-- nodes: written by run.py words -->", "<!-- end of nodes -->"
"""The lines around a README's table of nodes."""
SENTENCE = re.compile(r".+?(?:\.(?= |$)|。|$)")


@dataclass(frozen=True)
class Wording:
    """A language's own words and marks for a help page."""

    inputs: str
    outputs: str
    colon: str
    choices: str
    comma: str
    label: str
    end: str


WORDINGS = {
    "en": Wording("Inputs", "Outputs", ": ", " Choices: ", ", ", "{label} (`{value}`)", "."),
    "zh": Wording("输入", "输出", "：", "可选：", "、", "{label}（`{value}`）", "。"),
}
"""By language; the others begin with the English ones, to be translated."""


def with_rows(readme: str, english: Mapping[str, Any], translated: Mapping[str, Any]) -> str:
    """A README whose table has a row for each node: its English name, and the first sentence of its description.

    A node without a translation has its English sentence. Raises InputError where the two lines around the rows
    are missing.
    """
    before, begin, rest = readme.partition(f"{BEGIN}\n")
    table, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise InputError(f"Expected the lines {BEGIN} and {END} around the nodes of a README, found no such lines.")
    heading = [line for line in table.splitlines() if line.startswith("|")][:2]
    lines = {entry["display_name"]: _line(translated.get(name, entry)) for name, entry in english.items()}
    rows = [f"| **{name}** | {line} |" for name, line in lines.items()]
    return before + begin + "\n".join(["", *heading, *rows, "", ""]) + end + after


def _line(entry: Mapping[str, Any]) -> str:
    found = SENTENCE.match(entry["description"])
    return found[0] if found else ""


def help_page(english: Mapping[str, Any], translated: Mapping[str, Any], language: str) -> str:
    """A node's help page as far as its words give it: description, inputs, choices and outputs."""
    wording = WORDINGS.get(language, WORDINGS["en"])
    inputs = ((key, entry) for key, entry in translated["inputs"].items())
    outputs = ((entry["name"], translated["outputs"][n]) for n, entry in english["outputs"].items())
    parts = [
        f"# {translated['display_name']}",
        translated["description"],
        f"## {wording.inputs}",
        "\n".join(_items(inputs, wording)),
        f"## {wording.outputs}",
        "\n".join(_items(outputs, wording)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _items(entries: Iterator[tuple[str, Mapping[str, Any]]], wording: Wording) -> Iterator[str]:
    """A line for each input or output, with its translated name before the one that programs write."""
    for key, entry in entries:
        title = f"`{key}`" if entry["name"] == key else f"**{entry['name']}** `{key}`"
        yield f"- {title}{wording.colon}{entry['tooltip']}{_choices(entry.get('options', {}), wording)}"


def _choices(options: Mapping[str, str], wording: Wording) -> str:
    """The sentence that lists an input's choices; empty where it has none."""
    named = [
        f"`{value}`" if label == value else wording.label.format(label=label, value=value)
        for value, label in options.items()
    ]
    return f"{wording.choices}{wording.comma.join(named)}{wording.end}" if named else ""
