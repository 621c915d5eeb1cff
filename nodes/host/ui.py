"""A node's interface to the user: progress with interruption, previews, messages, schemas."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management as memory
import comfy.utils
from comfy_api.latest import io
from comfy_execution.progress import get_progress_state
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...common.errors import I2VError
from ...runtime.tools.table import Table

log = logging.getLogger(__name__)

COUNT_S = 0.1
"""Seconds between two lines of a count: each is a message to the page, and there may be hundreds in a second."""


class Progress:
    """A node's progress bar and line of text; every call lets an interruption through."""

    def __init__(self, node_id: str | None, total: int) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(total)
        self._counted_at = -math.inf

    def step(self, done: int, total: int, preview: Any = None) -> None:
        """Moves the bar; `preview` as `latent_preview` gives it."""
        memory.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total, preview)

    def count(self, what: str, done: int, total: int) -> None:
        """Moves the bar and writes `what done of total` on the node: the first and the last, and some between."""
        self.step(done, total)
        now = time.monotonic()
        if done == total or now - self._counted_at >= COUNT_S:
            self._counted_at = now
            self.say(f"{what} {done} of {total}")

    def say(self, text: str) -> None:
        """Writes a line on the node while it runs and after."""
        memory.throw_exception_if_processing_interrupted()
        say(self._node_id, text)


def tell_build(stage: str, done: float) -> None:
    """A report of a build on whichever node needed it; lets an interruption through."""
    memory.throw_exception_if_processing_interrupted()
    context = get_executing_context()
    say(None if context is None else context.node_id, f"building {stage} {done:.0%}")


def say(node_id: str | None, text: str) -> None:
    """Shows a text on a node, where the page can: on that of the one who queued it, for without a name all hear it."""
    server = None if node_id is None else PromptServer.instance
    if server is not None and server.client_id is not None and hasattr(server, "send_progress_text"):
        server.send_progress_text(text, shown_node(node_id), server.client_id)


def shown_node(node_id: str | None) -> str | None:
    """The node that the page shows in a node's place: another one for a copy that a loop has made of it."""
    return None if node_id is None else get_progress_state().dynprompt.get_display_node_id(node_id)


@contextmanager
def sentences() -> Iterator[None]:
    """Lets the pack's errors out as their sentence alone, without the chain of causes behind them."""
    try:
        yield
    except I2VError as error:
        log.debug("refused", exc_info=True)
        raise type(error)(str(error)) from None


def schema(**fields: Any) -> io.Schema:
    """io.Schema with those fields that this ComfyUI knows; older ones lack some that only decorate."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def text_ui(lines: list[str], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Output of a finished node for the page: its lines of text, and further entries."""
    return {"text": ("\n".join(lines),), **(more or {})}


def table_ui(table: Table, lines: list[str]) -> dict[str, Any]:
    """As `text_ui`, with a table that the page shows on the node."""
    return text_ui(lines, {"table": table.cells})
