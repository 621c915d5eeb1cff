"""The listener itself, against a socket server of the test's own."""

import struct
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from i2v_tensorrt.remote.comfyui.address import parse_address
from i2v_tensorrt.tests.live.texts import SILENCE_S, TEXT_MESSAGE, run_and_hear


class Speaker:
    """A server with one listener."""

    def __init__(self) -> None:
        self._came, self._leave = threading.Event(), threading.Event()
        self._listener: ServerConnection
        self.url = ""

    def handle(self, connection: ServerConnection) -> None:
        self._listener = connection
        self._came.set()
        self._leave.wait(30)

    def say(self, node: str, text: str) -> None:
        assert self._came.wait(10)
        self._listener.send(struct.pack(">II", TEXT_MESSAGE, len(node)) + node.encode() + text.encode())

    def leave(self) -> None:
        self._leave.set()

    def client(self, run: Any) -> Any:
        """One of the server that runs prompts so."""
        return SimpleNamespace(address=parse_address(self.url), run=run)


@pytest.fixture
def speaker() -> Iterator[Speaker]:
    speaker = Speaker()
    with serve(speaker.handle, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        speaker.url = f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        yield speaker
        speaker.leave()
        server.shutdown()
        thread.join()


def test_a_text_that_comes_late_is_heard(speaker: Speaker) -> None:
    """The listener was near the end of a silence that began before the run ended: it counted as one after it."""

    def run(prompt: Any) -> str:
        time.sleep(0.9 * SILENCE_S)
        threading.Timer(0.3 * SILENCE_S, speaker.say, ("2", "late")).start()
        return "result"

    assert run_and_hear(speaker.client(run), {}) == ("result", {"2": ["late"]})


def test_texts_come_in_order_and_at_once(speaker: Speaker) -> None:
    told: list[str] = []
    done = threading.Event()

    def hear(name: str, text: str) -> None:
        told.append(text)
        if text == "2":
            done.set()

    def run(prompt: Any) -> str:
        for text in ("1", "2"):
            speaker.say("7", text)
        assert done.wait(10)
        return "result"

    assert run_and_hear(speaker.client(run), {}, hear)[1] == {"7": ["1", "2"]}
    assert told == ["1", "2"]


def test_a_socket_that_closes_is_told(speaker: Speaker) -> None:
    def run(prompt: Any) -> str:
        speaker.leave()
        return "result"

    with pytest.raises(ConnectionClosed):
        run_and_hear(speaker.client(run), {})
