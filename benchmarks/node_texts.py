"""Texts that nodes show while they run: the server sends them to every socket, and stores none."""

from __future__ import annotations

import threading
import uuid
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ..remote.comfyui.address import parse_address
from ..remote.comfyui.event_socket import open_socket
from ..remote.comfyui.messages import StatusText, read_message

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

SILENCE_S = 0.5


class NodeTexts:
    """The lines received while the block runs, each once, in their order; raises ServerError without an answer."""

    def __init__(self, url: str) -> None:
        self._url, self._over = url, threading.Event()
        self._lines: dict[str, None] = {}
        self._open = ExitStack()

    @property
    def lines(self) -> tuple[str, ...]:
        return tuple(self._lines)

    def __enter__(self) -> NodeTexts:
        socket = self._open.enter_context(open_socket(parse_address(self._url), uuid.uuid4().hex))
        thread = threading.Thread(target=self._hear, args=(socket,), daemon=True)
        self._open.callback(thread.join)  # before the socket closes
        thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._open.close()

    def _hear(self, socket: ClientConnection) -> None:
        """Reads until a whole silence after the block's end, or until the server goes away."""
        from websockets.exceptions import ConnectionClosed

        while True:
            is_last = self._over.is_set()
            try:
                heard = read_message(socket.recv(timeout=SILENCE_S))
            except TimeoutError:
                if is_last:
                    return
                continue
            except ConnectionClosed:
                return
            if isinstance(heard, StatusText):
                self._lines |= dict.fromkeys(heard.text.splitlines())
