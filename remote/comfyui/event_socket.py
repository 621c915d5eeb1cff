"""The socket for ComfyUI's messages on its work, opened once or kept open.

Needs the package `websockets` (15 or newer).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from .address import USER_AGENT, Address
from .errors import ServerError
from .http import reason_of
from .messages import Message, read_message

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

FLAGS = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'
"""Asks the server to name each preview's node and prompt."""
CLOSE_S = 1.0
"""Seconds that a server may take to close the socket: it may be gone."""


@contextmanager
def open_socket(address: Address, client_id: str) -> Iterator[ClientConnection]:
    """A socket that the server knows by `client_id`, to read until the block ends; raises ServerError."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    headers = {name: value for name, value in address.headers.items() if name.lower() != "user-agent"}
    with ExitStack() as stack:
        try:
            # No pings: a node that holds the interpreter's lock for long would pass for a dead server.
            connection = stack.enter_context(
                connect(
                    address.socket_url(client_id),
                    ssl=address.ssl_context(),
                    additional_headers=headers,
                    user_agent_header=USER_AGENT,
                    proxy=_proxy(address),
                    max_size=None,
                    compression=None,
                    ping_interval=None,
                    close_timeout=CLOSE_S,
                )
            )
            connection.send(FLAGS)
        except (OSError, WebSocketException, ImportError) as error:  # a SOCKS proxy needs a package of its own
            raise ServerError(f"ComfyUI at {address.url} opened no socket: {address.hide(reason_of(error))}") from error
        yield connection


def _proxy(address: Address) -> str | None:
    """The proxy of the environment that leads to a server, the one that its requests take too; None without one."""
    from requests.utils import get_environ_proxies, select_proxy

    return None if address.is_local else select_proxy(address.url, get_environ_proxies(address.url))


class Backoff:
    """Wait before the next attempt: twice as long after each failure, up to `longest_s`."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s, self._longest_s = first_s, longest_s
        self.reset()

    def reset(self) -> None:
        """After a success: the next attempt may be made at once."""
        self._wait_s, self._due = self._first_s, 0.0

    def fail(self) -> None:
        """After a failure: the next attempt waits."""
        self._due = time.monotonic() + self._wait_s
        self._wait_s = min(2 * self._wait_s, self._longest_s)

    def remaining_s(self) -> float:
        """Seconds until the next attempt may be made; 0 if it may be made now."""
        return max(0.0, self._due - time.monotonic())


class EventSocket:
    """A socket that opens again by itself, under the same name, whenever it is lost.

    `opened` counts how often it has been: messages may have been missed where the number has changed.
    """

    def __init__(self, address: Address, client_id: str, backoff: Backoff) -> None:
        self.client_id = client_id
        self.opened = 0
        self._address = address
        self._backoff = backoff
        self._connection: ClientConnection | None = None
        self._close = ExitStack()

    @property
    def is_open(self) -> bool:
        """Whether there is a connection, as far as is known: one that is cut may go unnoticed."""
        return self._connection is not None

    def open(self) -> None:
        """Opens the connection if there is none; raises ServerError."""
        if self._connection is None:
            self._connection = self._close.enter_context(open_socket(self._address, self.client_id))
            self._backoff.reset()
            self.opened += 1

    def receive(self, timeout_s: float) -> Message | None:
        """The next message of interest, or None after `timeout_s` or after something that is none."""
        from websockets.exceptions import ConnectionClosed

        connection = self._connection or self._try()
        if connection is None:
            time.sleep(min(timeout_s, self._backoff.remaining_s()))
            return None
        try:
            return read_message(connection.recv(timeout=timeout_s))
        except (TimeoutError, KeyError, ValueError):  # no message came, or none that can be read
            return None
        except ConnectionClosed:
            self.close()
            return None

    def answers(self, timeout_s: float) -> bool:
        """Whether the other end still answers; a connection that does not answer is closed."""
        from websockets.exceptions import WebSocketException

        if self._connection is None:
            return False
        with suppress(OSError, WebSocketException):
            if self._connection.ping().wait(timeout_s):
                return True
        self.close()
        return False

    def close(self) -> None:
        """Closes the connection, if there is one; the next `receive` opens another."""
        self._connection = None
        self._close.close()

    def _try(self) -> ClientConnection | None:
        if self._backoff.remaining_s():
            return None
        try:
            self.open()
        except ServerError:
            self._backoff.fail()
        return self._connection
