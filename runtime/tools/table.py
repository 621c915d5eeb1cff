"""A small table that a person reads: on a node, or as Markdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A heading and rows of as many cells each."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def cells(self) -> list[list[str]]:
        """The heading and the rows, as plain data for the page."""
        return [list(self.head), *(list(row) for row in self.rows)]

    def markdown(self) -> str:
        """The table as Markdown."""
        lines = ["| " + " | ".join(map(_escaped, row)) + " |" for row in self.cells]
        return "\n".join([lines[0], "| --- " * len(self.head) + "|", *lines[1:]])


def _escaped(cell: str) -> str:
    """One line, and no bar that would begin another cell."""
    return " ".join(cell.split()).replace("|", "\\|")
