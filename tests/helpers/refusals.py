"""Refusals that a user reads: of the expected kind, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def assert_one_sentence(text: str, most: int = 300) -> None:
    assert text.endswith(".") and not text.endswith("..") and "\n" not in text and len(text) < most, text


@contextmanager
def refused(
    kind: type[BaseException], words: str | None = None, most: int = 300
) -> Iterator[pytest.ExceptionInfo[BaseException]]:
    """As `pytest.raises`, for an error of one sentence."""
    with pytest.raises(kind, match=words) as error:
        yield error
    assert_one_sentence(str(error.value), most)
