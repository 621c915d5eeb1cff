"""A client of ComfyUI's HTTP and WebSocket API: queue a prompt, follow it, fetch its files.

A prompt is a graph in ComfyUI's API format: node id -> {"class_type": ..., "inputs": {...}}.
Needs the packages `requests` and `websockets` (15 or newer).
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ...common.atomic_file import atomic_file
from .address import Address, parse_address
from .errors import PromptRefusedError, RunTimeoutError, ServerError, refusal
from .event_socket import Backoff, EventSocket
from .http import Http
from .messages import Event, Message, Preview, RunResult, ServerFile, StatusText, outcome
from .upload import upload

__all__ = ["ComfyClient", "Event", "Preview", "PromptRefusedError", "RunResult", "RunTimeoutError", "ServerError"]


LOOK_S = 5.0
"""Between two looks at the server's queue while a prompt is followed."""
GONE_S = 60.0
"""How long a server may stay away while a prompt is followed."""
REST_S = 2.0
"""How long the messages of a prompt that has ended may still be on their way."""


@dataclass
class _Record:
    """Messages received about one prompt."""

    prompt_id: str
    events: list[Event] = field(default_factory=list)
    previews: list[Preview] = field(default_factory=list)
    texts: list[StatusText] = field(default_factory=list)
    on_event: Callable[[Event], None] | None = None
    on_text: Callable[[StatusText], None] | None = None

    def receive(self, socket: EventSocket, until: float) -> Event | None:
        """Waits for a message until then, keeps one that concerns the prompt, and returns it if it is an event."""
        event = self._take(socket.receive(max(0.0, until - time.monotonic())))
        if event and self.on_event:
            self.on_event(event)
        return event

    def _take(self, heard: Message | None) -> Event | None:
        if isinstance(heard, Preview) and heard.prompt_id in (None, self.prompt_id):
            self.previews.append(heard)
        if isinstance(heard, StatusText):
            self.texts.append(heard)
            if self.on_text is not None:
                self.on_text(heard)
        if not isinstance(heard, Event) or heard.prompt_id != self.prompt_id:
            return None
        self.events.append(heard)
        return heard


class ComfyClient:
    """Talks to the server at an address, see `parse_address`; each request may take `timeout_s`."""

    def __init__(self, address: str | Address, timeout_s: float = 60.0) -> None:
        self.address = parse_address(address) if isinstance(address, str) else address
        self.url = self.address.url
        self._http = Http(self.address, timeout_s)

    def upload_image(self, image: Path | bytes, name: str | None = None) -> str:
        """Sends an image file, or an encoded image, and returns its name for LoadImage.

        No file on the server is overwritten: where a different image has the name, the new one gets another. Raises
        ServerError, with the status 413 for an image that is larger than the server takes.
        """
        content = image if isinstance(image, bytes) else image.read_bytes()
        name = name or (f"{sha256(content).hexdigest()[:16]}.png" if isinstance(image, bytes) else image.name)
        return upload(self._http, content, name)

    def queue(
        self,
        prompt: Mapping[str, Any],
        client_id: str | None = None,
        prompt_id: str | None = None,
        extra_data: Mapping[str, Any] | None = None,
    ) -> str:
        """Queues a prompt and returns its id; events go to the socket that bears `client_id`.

        Args:
            prompt: the graph.
            client_id: the client whose socket gets the events.
            prompt_id: the id to give it, a UUID as `str(uuid.uuid4())`, so that it can be looked for
                even where the answer is lost; the server's choice by default.
            extra_data: what goes beside the graph, such as the page's workflow for files, or keys of partner nodes.

        Raises:
            PromptRefusedError: the prompt is invalid. ComfyUI itself runs the valid outputs of a
                partly invalid prompt; here such a prompt is cancelled and refused as a whole.
            ServerError: the server cannot be reached or fails.
        """
        request: dict[str, Any] = {"prompt": prompt, "client_id": client_id or uuid.uuid4().hex}
        request |= {"prompt_id": prompt_id} if prompt_id else {}
        request |= {"extra_data": extra_data} if extra_data else {}
        try:
            answer = self._http.json("/prompt", request)
        except ServerError as error:
            if error.status != 400:
                raise
            raise _refusal(error) from None
        if answer.get("node_errors"):
            self.cancel(answer["prompt_id"])
            raise refusal(answer)
        return answer["prompt_id"]

    def run(
        self,
        prompt: Mapping[str, Any],
        on_event: Callable[[Event], None] | None = None,
        timeout_s: float = 600.0,
        on_text: Callable[[StatusText], None] | None = None,
        extra_data: Mapping[str, Any] | None = None,
        is_alive: Callable[[], bool] = lambda: True,
    ) -> RunResult:
        """Queues a prompt and waits for its end, with each event shown to `on_event` as it comes.

        `on_text` is shown the lines that nodes write on themselves. A socket that is lost opens again, and the prompt
        goes on, until `is_alive` says that the server will not come back. The result's status reports a node that
        failed or was interrupted. If waiting itself ends early (time, an exception from a callback, Ctrl-C), the prompt
        is cancelled.

        Raises:
            PromptRefusedError: the prompt is invalid.
            RunTimeoutError: it did not end within `timeout_s`.
            ServerError: the server cannot be reached, fails, or goes away for good.
        """
        deadline = time.monotonic() + timeout_s
        client_id = uuid.uuid4().hex
        with closing(EventSocket(self.address, client_id, Backoff(0.5, LOOK_S))) as events:
            events.open()
            prompt_id = self.queue(prompt, client_id, extra_data=extra_data)
            record = _Record(prompt_id, on_event=on_event, on_text=on_text)
            try:
                history = _follow(self, events, record, deadline, is_alive)
            except BaseException:
                with suppress(ServerError):
                    self.cancel(record.prompt_id)
                raise
        return _result(record, history)

    def queued(self) -> tuple[set[str], set[str]]:
        """The ids of the prompts that run, and of those that wait."""
        answer = self._http.json("/queue")
        running, waiting = ({entry[1] for entry in answer[key]} for key in ("queue_running", "queue_pending"))
        return running, waiting

    def cancel_all(self, prompt_ids: Iterable[str]) -> bool:
        """Takes prompts out of the queue, all at once, and interrupts the one that runs; as `cancel` else."""
        mine = list(prompt_ids)
        self._http.post("/queue", {"delete": mine})
        running = self.queued()[0]
        return all([self.cancel(prompt_id) for prompt_id in mine if prompt_id in running])

    def cancel(self, prompt_id: str, timeout_s: float = 5.0) -> bool:
        """Takes a prompt out of the queue, or interrupts it if it is running.

        Returns whether it has left within `timeout_s`: a node that does not look for interrupts
        ends its work first.
        """
        self._http.post("/queue", {"delete": [prompt_id]})
        deadline = time.monotonic() + timeout_s
        while prompt_id in self.queued()[0]:
            if time.monotonic() > deadline:
                return False
            # Repeated, since ComfyUI forgets an interrupt that comes while a prompt is only starting.
            self.interrupt(prompt_id)
            time.sleep(0.05)
        return True

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Asks the running prompt to stop; with an id, only if it is that one."""
        self._http.post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def free(self, unload_models: bool = True, free_memory: bool = True) -> None:
        """Asks the server to unload its models and drop its cached outputs, which it does once idle."""
        self._http.post("/free", {"unload_models": unload_models, "free_memory": free_memory})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The server's record of a prompt that has ended: `prompt`, `outputs`, `status`, `meta`."""
        entry = self.find_history(prompt_id)
        if entry is None:
            raise ServerError(f"the server's history should hold prompt {prompt_id}, but does not")
        return entry

    def find_history(self, prompt_id: str) -> dict[str, Any] | None:
        """The same, or None for a prompt that has not ended or that the server does not know."""
        return self._http.json(f"/history/{quote(prompt_id)}").get(prompt_id)

    def object_info(self) -> dict[str, dict[str, Any]]:
        """Inputs and outputs of each node of the server, by node class."""
        return self._http.json("/object_info")

    def node_info(self, class_type: str) -> dict[str, Any] | None:
        """Inputs and outputs of one node class; None where the server has no such class."""
        return self._http.json(f"/object_info/{quote(class_type, safe='')}").get(class_type)

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """A file in the server's `output`, `input` or `temp` folder, named as in a run's outputs."""
        place = {"filename": filename, "subfolder": subfolder, "type": type}
        with self._http.open("/view", params=place) as response:
            return self._http.content(response)

    def download(self, file: ServerFile, path: Path) -> int:
        """Fetches a file of a run; `path` then has the whole file or none. Returns the number of its bytes.

        Raises:
            ServerError: the server does not have it, fails, or breaks off in the middle.
            StorageError: it could not be written.
        """
        place = {"filename": file.filename, "subfolder": file.subfolder, "type": file.type}
        with self._http.open("/view", params=place) as response, atomic_file(path) as temporary:
            with temporary.open("wb") as target:
                self._http.copy(response, target)
            size = temporary.stat().st_size
            expected = response.headers.get("Content-Length")
            if expected is not None and size != int(expected):
                raise ServerError(f"{file.filename} should have {expected} bytes, but {size} came from {self.url}")
        return size


def _follow(
    client: ComfyClient,
    events: EventSocket,
    record: _Record,
    deadline: float,
    is_alive: Callable[[], bool],
) -> dict[str, Any]:
    """Reads messages until the prompt has ended; its history."""
    look, answered = time.monotonic() + LOOK_S, time.monotonic()
    while time.monotonic() < deadline:
        opened = events.opened
        event = record.receive(events, min(look, deadline))
        is_due = time.monotonic() >= look or events.opened != opened or (event is not None and event.is_end)
        if not is_due:
            continue
        look = time.monotonic() + LOOK_S
        try:
            history = _ended(client, record.prompt_id)
            answered = time.monotonic()
        except ServerError as error:
            if time.monotonic() - answered > GONE_S or not is_alive():
                lost = f"ComfyUI went away before prompt {record.prompt_id} had ended: {error}"
                raise ServerError(lost) from error
            continue
        if history is not None:
            if event is None or not event.is_end:
                _take_rest(events, record)
            return history
    raise RunTimeoutError(f"prompt {record.prompt_id} did not end in time and was cancelled")


def _take_rest(events: EventSocket, record: _Record) -> None:
    """Reads what a prompt that has ended had sent and nobody has read, up to its last message if that comes."""
    until = time.monotonic() + REST_S
    while time.monotonic() < until:
        event = record.receive(events, until)
        if event is not None and event.is_end:
            return


def _ended(client: ComfyClient, prompt_id: str) -> dict[str, Any] | None:
    """The history of a prompt, None while it runs or waits; raises ServerError for one that the server lost."""
    running, waiting = client.queued()  # the queue first: a prompt that ends after it was read is in the history
    return None if prompt_id in running | waiting else client.history(prompt_id)


def _refusal(error: ServerError) -> PromptRefusedError:
    try:
        answer = json.loads(error.body)
    except ValueError:
        answer = None
    return refusal(answer if isinstance(answer, dict) else {"error": str(error)})


def _result(record: _Record, history: Mapping[str, Any]) -> RunResult:
    status, error = outcome(history)
    heard = (tuple(record.events), tuple(record.previews), tuple(record.texts))
    return RunResult(record.prompt_id, status, error, history["outputs"], *heard)
