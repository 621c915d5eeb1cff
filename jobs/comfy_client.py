"""A client of ComfyUI's HTTP and WebSocket API: queue a prompt, follow it, fetch what it made.

A prompt is a graph in ComfyUI's API format: node id -> {"class_type": ..., "inputs": {...}}.
Following one needs the `websockets` package (15 or newer); all else is the standard library.
"""

import json
import struct
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote, urlencode

from ..engine_builder.errors import I2VError, InputError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_MEDIA_TYPES = {1: "image/jpeg", 2: "image/png"}
_PREVIEW, _PREVIEW_WITH_METADATA = 1, 4

Status = Literal["success", "error", "interrupted"]


class ServerError(I2VError):
    """The server cannot be reached, or answers with something else than asked; `status` is HTTP's, if any."""

    def __init__(self, message: str, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class RunTimeoutError(ServerError):
    """A prompt did not end in time; it has been cancelled."""


class PromptRefusedError(InputError):
    """ComfyUI found a prompt invalid, wholly or in part; `node_errors` is its own account, by node id."""

    def __init__(self, message: str, node_errors: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


@dataclass(frozen=True)
class Event:
    """One message about the prompt, such as `executing`, `progress` or `executed`, with its data."""

    kind: str
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Preview:
    """An encoded picture that a node sent while it ran; old servers do not say which node."""

    image: bytes
    media_type: str
    node_id: str | None


@dataclass(frozen=True)
class RunResult:
    """How a prompt ended; `outputs` holds by node id what its output nodes reported, as /history tells it."""

    prompt_id: str
    status: Status
    error: str | None
    outputs: Mapping[str, Mapping[str, Any]]
    events: tuple[Event, ...]
    previews: tuple[Preview, ...]

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


@dataclass
class _Record:
    """What has been heard about one prompt."""

    prompt_id: str
    events: list[Event] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)

    def take(self, message: str | bytes) -> Event | None:
        """Keeps what concerns the prompt, and returns it if it is an event."""
        if isinstance(message, bytes):
            preview = _read_preview(message, self.prompt_id)
            if preview:
                self.previews.append(preview)
            return None
        content = json.loads(message)
        event = Event(content["type"], content.get("data") or {})
        if event.data.get("prompt_id") != self.prompt_id:
            return None
        self.events.append(event)
        return event


class ComfyClient:
    """Talks to the server at `url`; each request may take `timeout_s`."""

    def __init__(self, url: str, timeout_s: float = 60.0) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s

    def upload_image(self, image: Path | bytes, name: str | None = None) -> str:
        """Sends an image file, or an encoded image, and returns the name that LoadImage knows it by.

        Nothing on the server is overwritten: where a different image has the name, it is given another.
        """
        content = image if isinstance(image, bytes) else image.read_bytes()
        name = name or (f"{sha256(content).hexdigest()[:16]}.png" if isinstance(image, bytes) else image.name)
        boundary = uuid.uuid4().hex
        head = (
            f"--{boundary}\r\n"
            f'Content-Disposition: form-data; name="image"; filename="{_header_text(name)}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        answer = self._json("/upload/image", body, f"multipart/form-data; boundary={boundary}")
        return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else answer["name"]

    def queue(self, prompt: Mapping[str, Any], client_id: str | None = None) -> str:
        """Queues a prompt and returns its id; events go to the socket that bears `client_id`.

        Raises:
            PromptRefusedError: the prompt is invalid. ComfyUI itself runs the valid outputs of a
                partly invalid prompt; here such a prompt is cancelled and refused as a whole.
            ServerError: the server cannot be reached or fails.
        """
        request = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        try:
            answer = self._json("/prompt", json.dumps(request).encode())
        except ServerError as error:
            if error.status != 400:
                raise
            raise _refusal(json.loads(error.body)) from None
        if answer.get("node_errors"):
            self.cancel(answer["prompt_id"])
            raise _refusal(answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: Mapping[str, Any],
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float = 600.0,
    ) -> RunResult:
        """Queues a prompt and waits for its end, with each event shown to `on_event` as it comes.

        A node that fails or is interrupted is told in the result's status. If waiting itself ends
        early (time, an exception from `on_event`, Ctrl-C), the prompt is cancelled.

        Raises:
            PromptRefusedError: the prompt is invalid.
            RunTimeoutError: it did not end within `timeout_s`.
            ServerError: the server cannot be reached, fails or goes away.
        """
        deadline = time.monotonic() + timeout_s
        client_id = uuid.uuid4().hex
        with self._listen(client_id) as connection:
            record = _Record(self.queue(prompt, client_id))
            try:
                self._follow(connection, record, on_event, deadline)
            except BaseException:
                with suppress(ServerError):
                    self.cancel(record.prompt_id)
                raise
        return _result(record, self.history(record.prompt_id))

    def cancel(self, prompt_id: str, timeout_s: float = 5.0) -> bool:
        """Takes a prompt out of the queue, or interrupts it if it is running.

        Returns whether it has left within `timeout_s`: a node that does not look for interrupts
        ends its work first.
        """
        self._request("/queue", json.dumps({"delete": [prompt_id]}).encode())
        deadline = time.monotonic() + timeout_s
        while self._is_running(prompt_id):
            if time.monotonic() > deadline:
                return False
            # Repeated, since ComfyUI forgets an interrupt that comes while a prompt is only starting.
            self.interrupt(prompt_id)
            time.sleep(0.05)
        return True

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Asks the running prompt to stop; with an id, only if it is that one."""
        self._request("/interrupt", json.dumps({"prompt_id": prompt_id} if prompt_id else {}).encode())

    def free(self, unload_models: bool = True, free_memory: bool = True) -> None:
        """Asks the server to unload its models and drop its cached outputs, which it does once idle."""
        wishes = {"unload_models": unload_models, "free_memory": free_memory}
        self._request("/free", json.dumps(wishes).encode())

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The server's record of a prompt that has ended: `prompt`, `outputs`, `status`, `meta`."""
        entries = self._json(f"/history/{quote(prompt_id)}")
        if prompt_id not in entries:
            raise ServerError(f"the server's history should hold prompt {prompt_id}, but does not")
        return entries[prompt_id]

    def object_info(self) -> dict[str, dict[str, Any]]:
        """What each node of the server takes and gives, by node class."""
        return self._json("/object_info")

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """A file in the server's `output`, `input` or `temp` folder, named as in a run's outputs."""
        place = {"filename": filename, "subfolder": subfolder, "type": type}
        return self._request(f"/view?{urlencode(place)}")

    @contextmanager
    def _listen(self, client_id: str) -> Iterator["ClientConnection"]:
        """A socket that the server already knows, and to which it names each preview's node."""
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect

        address = f"ws{self.url.removeprefix('http')}/ws?clientId={client_id}"
        with ExitStack() as stack:
            try:
                # No pings: a node that holds the interpreter's lock for long would pass for a dead server.
                connection = stack.enter_context(
                    connect(address, max_size=None, compression=None, ping_interval=None, proxy=None)
                )
            except (OSError, WebSocketException) as error:
                raise ServerError(f"ComfyUI at {self.url} opened no socket: {error}") from error
            flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
            connection.send(json.dumps(flags))
            yield connection

    def _follow(
        self,
        connection: "ClientConnection",
        record: _Record,
        on_event: Callable[[Event], None] | None,
        deadline: float,
    ) -> None:
        """Hears messages until the prompt has ended and its history is written."""
        from websockets.exceptions import ConnectionClosed

        while True:
            try:
                message = connection.recv(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError as error:
                late = f"prompt {record.prompt_id} did not end in time and was cancelled"
                raise RunTimeoutError(late) from error
            except ConnectionClosed as error:
                raise ServerError(f"ComfyUI went away before prompt {record.prompt_id} had ended") from error
            event = record.take(message)
            if event and on_event:
                on_event(event)
            # `execution_success` comes earlier, but before the history is written.
            if event and event.kind == "executing" and event.data["node"] is None:
                return

    def _is_running(self, prompt_id: str) -> bool:
        return any(entry[1] == prompt_id for entry in self._json("/queue")["queue_running"])

    def _json(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> Any:
        answer = self._request(path, body, content_type)
        try:
            return json.loads(answer)
        except ValueError as error:
            found = f"{self.url}{path} should answer in JSON, but answered {answer[:80]!r}"
            raise ServerError(found) from error

    def _request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})  # noqa: S310
        try:
            with _OPENER.open(request, timeout=self.timeout_s) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            found = f"{self.url}{path} answered {error.code} {error.reason}"
            raise ServerError(found, error.code, error.read()) from error
        except OSError as error:
            raise ServerError(f"ComfyUI at {self.url} cannot be reached: {error}") from error


def _header_text(name: str) -> str:
    """A file name inside a quoted header value, escaped as browsers do."""
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")


def _read_preview(message: bytes, prompt_id: str) -> Preview | None:
    """The preview in a binary message, if it is one and of this prompt.

    Layout, big-endian (ComfyUI's server.py): type, then the format or the metadata's length, then
    the metadata in JSON if it has any, then the image.
    """
    kind, number = struct.unpack_from(">II", message)
    if kind == _PREVIEW:
        return Preview(message[8:], _MEDIA_TYPES.get(number, "application/octet-stream"), None)
    if kind != _PREVIEW_WITH_METADATA:
        return None
    metadata = json.loads(message[8 : 8 + number])
    if metadata.get("prompt_id", prompt_id) != prompt_id:
        return None
    return Preview(message[8 + number :], metadata["image_type"], metadata.get("node_id"))


def _refusal(answer: Mapping[str, Any]) -> PromptRefusedError:
    """The server's account of an invalid prompt as one sentence."""
    node_errors: Mapping[str, Any] = answer.get("node_errors") or {}
    reasons = [
        f"node {node_id} ({node['class_type']}): {_reason(error)}"
        for node_id, node in node_errors.items()
        for error in node["errors"]
    ]
    if not reasons:
        reasons = [_reason(answer["error"]) if isinstance(answer["error"], Mapping) else str(answer["error"])]
    return PromptRefusedError(f"ComfyUI refused the prompt: {'; '.join(reasons)}", node_errors)


def _reason(error: Mapping[str, Any]) -> str:
    message, details = (str(error.get(key, "")).strip().rstrip(".") for key in ("message", "details"))
    return f"{message}: {details}" if details else message


def _result(record: _Record, history: Mapping[str, Any]) -> RunResult:
    status, error = _outcome(history["status"])
    return RunResult(
        record.prompt_id, status, error, history["outputs"], tuple(record.events), tuple(record.previews)
    )


def _outcome(status: Mapping[str, Any]) -> tuple[Status, str | None]:
    """How a prompt ended by its history, with one sentence where it did not succeed."""
    messages = dict(status["messages"])
    if status["completed"]:
        return "success", None
    if "execution_interrupted" in messages:
        place = messages["execution_interrupted"]
        return "interrupted", f"node {place['node_id']} ({place['node_type']}) was interrupted"
    failure = messages["execution_error"]
    cause = f"{failure['exception_type']}: {str(failure['exception_message']).strip()}"
    return "error", f"node {failure['node_id']} ({failure['node_type']}) failed with {cause}"
