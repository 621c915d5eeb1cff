"""ComfyUI's messages over its socket and in its history, as plain data.

The layouts are those of ComfyUI's server.py and execution.py.
"""

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

_MEDIA_TYPES = {1: "image/jpeg", 2: "image/png"}
_PREVIEW, _TEXT, _PREVIEW_WITH_METADATA = 1, 3, 4

Status = Literal["success", "error", "interrupted"]


@dataclass(frozen=True)
class Event:
    """One message about the prompt, such as `executing`, `progress` or `executed`, with its data."""

    kind: str
    data: Mapping[str, Any]

    @property
    def prompt_id(self) -> str | None:
        """The prompt that it is about, if it is about one."""
        return self.data.get("prompt_id")

    @property
    def is_end(self) -> bool:
        """Whether the prompt has ended and its history is written.

        `execution_success` comes earlier, before the history.
        """
        return self.kind == "executing" and self.data.get("node") is None


@dataclass(frozen=True)
class Preview:
    """An encoded picture that a node sent while it ran; old servers name neither the node nor the prompt."""

    image: bytes
    media_type: str
    node_id: str | None
    prompt_id: str | None = None


@dataclass(frozen=True)
class StatusText:
    """A line that a node shows on itself while it runs; the server does not name the prompt."""

    node_id: str
    text: str


Message = Event | Preview | StatusText


@dataclass(frozen=True)
class RunResult:
    """Result of a prompt; `outputs` holds the reports of its output nodes by node id, as in /history."""

    prompt_id: str
    status: Status
    error: str | None
    outputs: Mapping[str, Mapping[str, Any]]
    events: tuple[Event, ...]
    previews: tuple[Preview, ...]
    texts: tuple[StatusText, ...] = ()

    @property
    def progress(self) -> dict[str, list[tuple[float, float]]]:
        """By node id, each (value, maximum) that the node reported, in order."""
        steps: dict[str, list[tuple[float, float]]] = {}
        for event in self.of_kind("progress"):
            steps.setdefault(event.data["node"], []).append((event.data["value"], event.data["max"]))
        return steps

    def of_kind(self, kind: str) -> list[Event]:
        """The events of one kind, in order."""
        return [event for event in self.events if event.kind == kind]


_SUFFIX = re.compile(r".*(\.\w{1,10})", re.ASCII)


@dataclass(frozen=True)
class ServerFile:
    """A file that a node has made, as `/view` finds it; `type` is the folder: output, temp or input."""

    filename: str
    subfolder: str
    type: str

    @property
    def suffix(self) -> str:
        """The name's ending, such as `.mp4`; empty where it is none that a file here should bear."""
        found = _SUFFIX.fullmatch(self.filename.rpartition("/")[2])
        return found[1] if found else ""


def read_message(message: str | bytes) -> Message | None:
    """Content of a message of the socket; None for one of no interest here."""
    if isinstance(message, bytes):
        return _read_binary(message)
    content = json.loads(message)
    return Event(content["type"], content.get("data") or {})


def _read_binary(message: bytes) -> Preview | StatusText | None:
    """A binary message, big-endian: its kind, a number that is a format or a length, and the data."""
    if len(message) < 8:
        return None
    kind, number = struct.unpack_from(">II", message)
    head, rest = message[8 : 8 + number], message[8 + number :]
    if kind == _PREVIEW:
        return Preview(message[8:], _MEDIA_TYPES.get(number, "application/octet-stream"), None)
    if kind == _PREVIEW_WITH_METADATA:
        metadata = json.loads(head)
        return Preview(rest, metadata["image_type"], metadata.get("node_id"), metadata.get("prompt_id"))
    if kind == _TEXT:
        return StatusText(head.decode("utf-8", "replace"), rest.decode("utf-8", "replace"))
    return None


def printable(name: str) -> str:
    """A file name for other systems and for sentences: bytes that are no text become question marks."""
    return name.encode("utf-8", "replace").decode()


def outcome(history: Mapping[str, Any]) -> tuple[Status, str | None]:
    """Status of a prompt by its history, with one sentence where it did not succeed."""
    status = history.get("status") or {}
    messages = dict(status.get("messages", ()))
    if status.get("completed"):
        return "success", None
    if "execution_interrupted" in messages:
        place = messages["execution_interrupted"]
        return "interrupted", f"node {place['node_id']} ({place['node_type']}) was interrupted"
    if "execution_error" not in messages:
        return "error", "ComfyUI's history says that it failed, and not why"
    failure = messages["execution_error"]
    cause = f"{failure['exception_type']}: {str(failure['exception_message']).strip()}"
    return "error", f"node {failure['node_id']} ({failure['node_type']}) failed with {cause}"


def elapsed_s(history: Mapping[str, Any]) -> float | None:
    """Seconds from a prompt's start to its end by the server's clock, where its history has times."""
    stamps = [data["timestamp"] for _, data in history["status"].get("messages", ()) if "timestamp" in data]
    return (max(stamps) - min(stamps)) / 1000 if stamps else None


def made_files(outputs: Mapping[str, Mapping[str, Any]]) -> list[ServerFile]:
    """Each file of a run's outputs once: those kept in the output folder, or if there are none, the temporary ones."""
    found = dict.fromkeys(_described(outputs))
    kept = [file for file in found if file.type == "output"]
    return kept or list(found)


def _described(outputs: Mapping[str, Mapping[str, Any]]) -> Iterator[ServerFile]:
    for node in outputs.values():
        for entries in node.values():
            for entry in entries if isinstance(entries, list | tuple) else ():
                if isinstance(entry, Mapping) and entry.get("filename"):
                    told = (entry["filename"], entry.get("subfolder", ""), entry.get("type", "output"))
                    if all(isinstance(text, str) and (not text or text.isprintable()) for text in told):
                        yield ServerFile(*told)
