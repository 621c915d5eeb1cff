"""The lines that nodes write on themselves while a prompt runs."""

from collections.abc import Callable, Mapping
from typing import Any

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.messages import StatusText


def run_and_hear(
    client: ComfyClient, prompt: Mapping[str, Any], on_text: Callable[[str, str], None] = lambda name, text: None
) -> tuple[RunResult, dict[str, list[str]]]:
    """Runs a prompt; with its result comes what each node said, in order; `on_text` hears it at once."""

    def hear(line: StatusText) -> None:
        on_text(line.node_id, line.text)

    result = client.run(prompt, on_text=hear)
    heard: dict[str, list[str]] = {}
    for line in result.texts:
        heard.setdefault(line.node_id, []).append(line.text)
    return result, heard


def interrupt_on(client: ComfyClient, node: str, start: str) -> Callable[[str, str], None]:
    """Interrupts what runs as soon as the node says a line that begins so; for `run_and_hear`."""

    def hear(name: str, text: str) -> None:
        if name == node and text.startswith(start):
            for running in client.queued()[0]:
                client.interrupt(running)

    return hear
