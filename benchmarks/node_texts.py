"""Lines that nodes show while they run; the server sends them to whoever queued the prompt, and stores none."""

from __future__ import annotations

from ..remote.comfyui.messages import StatusText


class Heard:
    """What a run's `on_text` is given: the lines, each once, in their order."""

    def __init__(self) -> None:
        self._lines: dict[str, None] = {}

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines)

    def __call__(self, text: StatusText) -> None:
        self._lines |= dict.fromkeys(text.text.splitlines())
