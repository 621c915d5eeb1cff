"""Sentences for the user, kept until they are shown."""

from __future__ import annotations


class Notes:
    """Sentences in the order in which they came, each once until they are taken."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}

    def note(self, sentence: str | None) -> None:
        """Keeps a sentence, where it is one."""
        if sentence is not None:
            self._sentences[sentence] = None

    def take(self) -> list[str]:
        """The sentences since the last call."""
        sentences, self._sentences = list(self._sentences), {}
        return sentences
