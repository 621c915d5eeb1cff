"""Tests with a count: a short form in every run, the full one under the marker `torture`."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Evidence = Callable[[str, int, str], None]
"""The fixture `evidence`: takes a name, the count, and what was found."""


def counted(short: int, full: int, *, slow: bool = False) -> pytest.MarkDecorator:
    """Gives a test its `count`; `slow` where the short form takes more than ten seconds."""
    few = pytest.param(short, marks=pytest.mark.slow) if slow else short
    return pytest.mark.parametrize("count", [few, pytest.param(full, marks=pytest.mark.torture)])
