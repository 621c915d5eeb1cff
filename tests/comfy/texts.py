"""The lines that nodes write on themselves while a prompt runs: the server tells them to every socket."""

import struct
import threading
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from websockets.sync.client import connect

from i2v_tensorrt.jobs.comfy_client import ComfyClient, RunResult

TEXT_MESSAGE = 3
SILENCE_S = 0.5


def read_text(message: str | bytes) -> list[tuple[str, str]]:
    """Node and text of a message, which has its type, the node id's length, the node id, the text; else nothing."""
    if isinstance(message, str) or struct.unpack_from(">I", message)[0] != TEXT_MESSAGE:
        return []
    (length,) = struct.unpack_from(">I", message, 4)
    return [(message[8 : 8 + length].decode(), message[8 + length :].decode())]


def run_and_hear(
    client: ComfyClient, prompt: Mapping[str, Any], on_text: Callable[[str, str], None] = lambda name, text: None
) -> tuple[RunResult, dict[str, list[str]]]:
    """Runs a prompt; with its result comes what each node said, in order; `on_text` hears it at once."""
    heard: dict[str, list[str]] = {}
    ended = threading.Event()
    # A name of its own: the server forgets a name when the socket before it closes, however late.
    with connect(f"ws{client.url.removeprefix('http')}/ws?clientId={uuid.uuid4().hex}", proxy=None) as socket:

        def hear() -> None:
            while True:
                try:
                    message = socket.recv(timeout=SILENCE_S)
                except TimeoutError:
                    if ended.is_set():
                        return
                    continue
                for name, text in read_text(message):
                    heard.setdefault(name, []).append(text)
                    on_text(name, text)

        listener = threading.Thread(target=hear)
        listener.start()
        try:
            result = client.run(prompt)
        finally:
            ended.set()
            listener.join()
    return result, heard
