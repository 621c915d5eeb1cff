"""The lines that nodes write on themselves while a prompt runs: the server tells them to every socket."""

import struct
import threading
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.event_socket import open_socket

TEXT_MESSAGE = 3
SILENCE_S = 0.5
ANSWER_S = 60.0


def read_text(message: str | bytes) -> list[tuple[str, str]]:
    """Node and text of a message, which has its type, the node id's length, the node id, the text; else nothing."""
    if isinstance(message, str) or struct.unpack_from(">I", message)[0] != TEXT_MESSAGE:
        return []
    (length,) = struct.unpack_from(">I", message, 4)
    return [(message[8 : 8 + length].decode(), message[8 + length :].decode())]


def run_and_hear(
    client: ComfyClient, prompt: Mapping[str, Any], on_text: Callable[[str, str], None] = lambda name, text: None
) -> tuple[RunResult, dict[str, list[str]]]:
    """Runs a prompt; with its result comes what each node said, in order; `on_text` hears it at once.

    It listens until a whole silence after the prompt's end, and fails where the socket does.
    """
    heard: dict[str, list[str]] = {}
    ended = threading.Event()
    # A name of its own: the server forgets a name when the socket before it closes, however late.
    with open_socket(client.address, uuid.uuid4().hex) as socket, ThreadPoolExecutor(1) as pool:

        def hear() -> None:
            while True:
                is_last = ended.is_set()
                try:
                    message = socket.recv(timeout=SILENCE_S)
                except TimeoutError:
                    if is_last:
                        return
                    continue
                for name, text in read_text(message):
                    heard.setdefault(name, []).append(text)
                    on_text(name, text)

        listener = pool.submit(hear)
        try:
            result = client.run(prompt)
            # An answer comes after all that the server sent before it.
            assert socket.ping(ack_on_close=True).wait(ANSWER_S), "the socket answers no more"
        finally:
            ended.set()
        listener.result()
    return result, heard


def interrupt_on(client: ComfyClient, node: str, start: str) -> Callable[[str, str], None]:
    """Interrupts what runs as soon as the node says a line that begins so; for `run_and_hear`."""

    def hear(name: str, text: str) -> None:
        if name == node and text.startswith(start):
            for running in client.queued()[0]:
                client.interrupt(running)

    return hear
