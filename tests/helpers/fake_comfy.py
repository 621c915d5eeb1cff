"""A small server that answers as ComfyUI does, over real sockets, and that fails when it is told to.

What it has saved outlives its restarts, as files on a disk do; its queue and its history do not.
"""

from __future__ import annotations

import json
import socket
import threading
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.http11 import Request
from websockets.server import ServerProtocol

CLASSES = {"LoadImage": {"input": {"required": {"image": [["x.png"], {}]}, "optional": {"channel": ["STRING", {}]}}}}
STEPS = 2
GRAPH: dict[str, dict[str, Any]] = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
    "2": {"class_type": "Saver", "inputs": {"frames": ["1", 0]}, "_meta": {"title": "Save"}},
}
"""A workflow that it runs."""


class Server(ThreadingHTTPServer):
    """A listening port that can be taken again at once."""

    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections break here by intent."""


class Life:
    """The server between a start and the next kill."""

    def __init__(self, fake: FakeComfy, port: int) -> None:
        self.fake = fake
        self.lock = threading.Condition()
        self.waiting: list[tuple[str, dict[str, Any], str]] = []
        self.running: list[tuple[str, dict[str, Any], str]] = []
        self.history: dict[str, Any] = {}
        self.interrupted: set[str] = set()
        self.unseen: defaultdict[str, int] = defaultdict(int)
        self.sockets: dict[str, tuple[ServerProtocol, socket.socket]] = {}
        self.connections: set[socket.socket] = set()
        self.alive = True
        self.server = Server(("127.0.0.1", port), type("Handler", (Handler,), {"life": self}))
        for work in (self.work, lambda: self.server.serve_forever(0.01)):
            threading.Thread(target=work, daemon=True).start()

    def end(self, tells: bool = True) -> None:
        """As SIGKILL: the queue and the history are gone, and every connection is cut, unless nobody `tells` so."""
        self.alive = False
        self.server.socket.close()
        for connection in tuple(self.connections) if tells else ():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        with self.lock:
            self.lock.notify_all()
        threading.Thread(target=self.server.shutdown, daemon=True).start()

    def work(self) -> None:
        while self.alive:
            with self.lock:
                while self.alive and not self.waiting:
                    self.lock.wait(1)
                if not self.alive:
                    return
                job = self.waiting.pop(0)
                self.running = [job]
            self.execute(*job)

    def execute(self, prompt_id: str, prompt: dict[str, Any], client_id: str) -> None:
        picture = next((node["inputs"]["image"] for node in prompt.values() if "image" in node["inputs"]), "none")

        def tell(kind: str, **data: Any) -> None:
            self.send(client_id, kind, {"prompt_id": prompt_id, **data})

        self.fake.picture = picture
        tell("execution_start")
        self.fake.moment("start")
        status: dict[str, Any] = {"completed": True, "messages": [["execution_start", {"timestamp": 1000}]]}
        outputs: dict[str, Any] = {}
        for node_id in prompt:
            tell("executing", node=node_id)
            for step in range(STEPS):
                self.fake.step.wait(10)
                time.sleep(self.fake.step_s)
                tell("progress", node=node_id, value=step + 1, max=STEPS)
            self.fake.moment("middle")
            if not self.alive:
                return
            if prompt_id in self.interrupted:
                place = {"node_id": node_id, "node_type": prompt[node_id]["class_type"]}
                status = {"completed": False, "messages": [["execution_interrupted", place]]}
                break
        else:
            outputs = self.fake.save(picture)
            status["messages"].append(["execution_success", {"timestamp": 3500}])
            self.fake.moment("saved")
        if self.alive:
            with self.lock:
                self.running = []
                self.history[prompt_id] = {"outputs": outputs, "status": status}
            tell("executing", node=None)

    def send(self, client_id: str, kind: str, data: dict[str, Any]) -> None:
        if client_id not in self.sockets or not self.alive:
            return
        protocol, connection = self.sockets[client_id]
        for _ in range(self.fake.copies):
            with suppress(Exception):
                protocol.send_text(json.dumps({"type": kind, "data": data}).encode())
                connection.sendall(b"".join(protocol.data_to_send()))


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    life: Life

    def setup(self) -> None:
        self.life.connections.add(self.request)
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        del format, args

    def do_GET(self) -> None:
        self.serve("GET")

    def do_POST(self) -> None:
        self.serve("POST")

    def serve(self, method: str) -> None:
        fake, parts = self.life.fake, urlsplit(self.path)
        if not self.life.alive:
            return
        if parts.path == "/ws":
            self.talk(parse_qs(parts.query)["clientId"][0])
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        name = "/" + parts.path.split("/")[1]
        faults = fake.faults[f"{method} {name}"]
        fault = faults.popleft() if faults else ""
        if fault == "drop":
            return
        if fault.isdigit():
            self.answer(int(fault), b"trouble")
            return
        handler = f"{method}_{name[1:]}".lower()
        status, content = getattr(self if hasattr(self, handler) else fake, handler)(body, parts)
        if fault == "lose the answer" or not self.life.alive:
            return
        self.answer(status, content, short=fault == "cut")

    def answer(self, status: int, content: bytes, short: bool = False) -> None:
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if short else content)

    def post_upload(self, body: bytes, _: Any) -> tuple[int, bytes]:
        name = body.split(b'filename="')[1].split(b'"')[0].decode()
        self.life.fake.uploads.append(name)
        return 200, json.dumps({"name": name, "subfolder": ""}).encode()

    def post_prompt(self, body: bytes, _: Any) -> tuple[int, bytes]:
        request = json.loads(body)
        refused = self.life.fake.refuses(request["prompt"])
        if refused:
            return 400, json.dumps({"error": refused, "node_errors": {}}).encode()
        with self.life.lock:
            prompt_id = request.get("prompt_id") or uuid.uuid4().hex
            self.life.fake.posted.append(prompt_id)
            self.life.fake.extra_data.append(request.get("extra_data"))
            self.life.waiting.append((prompt_id, request["prompt"], request["client_id"]))
            self.life.lock.notify_all()
        return 200, json.dumps({"prompt_id": prompt_id, "node_errors": {}}).encode()

    def get_queue(self, *_: Any) -> tuple[int, bytes]:
        with self.life.lock:
            running, waiting = ([[0, job[0]] for job in jobs] for jobs in (self.life.running, self.life.waiting))
        return 200, json.dumps({"queue_running": running, "queue_pending": waiting}).encode()

    def post_queue(self, body: bytes, _: Any) -> tuple[int, bytes]:
        gone = json.loads(body)["delete"]
        with self.life.lock:
            self.life.waiting = [job for job in self.life.waiting if job[0] not in gone]
        return 200, b""

    def post_interrupt(self, body: bytes, _: Any) -> tuple[int, bytes]:
        self.life.interrupted.add(json.loads(body)["prompt_id"])
        return 200, b""

    def get_history(self, _: bytes, parts: Any) -> tuple[int, bytes]:
        prompt_id = parts.path.split("/")[2]
        with self.life.lock:
            known = prompt_id in self.life.history
            self.life.unseen[prompt_id] += known
            shown = known and self.life.unseen[prompt_id] > self.life.fake.slow_history
            found = {prompt_id: self.life.history[prompt_id]} if shown else {}
        return 200, json.dumps(found).encode()

    def get_view(self, _: bytes, parts: Any) -> tuple[int, bytes]:
        content = self.life.fake.files.get(parse_qs(parts.query)["filename"][0])
        return (404, b"") if content is None else (200, content)

    def get_object_info(self, _: bytes, parts: Any) -> tuple[int, bytes]:
        name = parts.path.split("/")[2]
        return 200, json.dumps({name: CLASSES[name]} if name in CLASSES else {}).encode()

    def talk(self, client_id: str) -> None:
        """A WebSocket: what comes is answered by the protocol alone (pings), what goes is sent by `Life.send`."""
        protocol = ServerProtocol()
        lines = [f"GET {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in self.headers.items())]
        protocol.receive_data("\r\n".join([*lines, "", ""]).encode())
        (request,) = protocol.events_received()
        assert isinstance(request, Request)
        protocol.send_response(protocol.accept(request))
        self.request.sendall(b"".join(protocol.data_to_send()))
        self.life.sockets[client_id] = (protocol, self.request)
        self.life.fake.opened += 1
        with suppress(OSError):
            while (data := self.request.recv(4096)) and self.life.alive:
                protocol.receive_data(data)
                self.request.sendall(b"".join(protocol.data_to_send()))
                if protocol.close_expected():
                    return


class FakeComfy:
    """The server, with its knobs.

    `faults` holds by method and path what becomes of the next requests: a status, `drop`, `lose the
    answer` (after doing what was asked) or `cut` (half of the answer). `kills` holds moments of the
    server's whole life, such as ("saved", 3) for the third video saved, at which it dies; it is back
    `down_s` later. A run waits at each step while `step` is not set.
    """

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.files: dict[str, bytes] = {}
        self.saved: list[str] = []
        self.posted: list[str] = []
        self.extra_data: list[Any] = []
        self.cached: dict[str, str] = {}
        self.keeps_outputs, self.forgets = False, True
        self.max_upload_size = 100 << 20
        self.uploads: list[str] = []
        self.opened = 0
        self.picture = ""
        self.faults: defaultdict[str, deque[str]] = defaultdict(deque)
        self.kills: set[tuple[str, int]] = set()
        self.moments: defaultdict[str, int] = defaultdict(int)
        self.down_s = 0.05
        self.step_s = 0.001
        self.slow_history = 0
        self.copies = 1
        self.step = threading.Event()
        self.step.set()
        self.refuses: Callable[[dict[str, Any]], str] = lambda prompt: ""
        self.on_moment: Callable[[str, int], None] = lambda name, count: None
        self.life: Life | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        while self.life is None:
            with suppress(OSError):  # for a moment the old life still holds the port
                self.life = Life(self, self._port)

    def kill(self, tells: bool = True) -> None:
        if self.life is not None:
            self.life.end(tells)
            self.life = None

    def restart(self, tells: bool = True) -> None:
        """Dies at once and comes back a little later; as a machine without power where nobody `tells` so."""
        self.kill(tells)
        threading.Timer(self.down_s, self.start).start()

    def cut_sockets(self) -> None:
        """Breaks the WebSockets alone."""
        assert self.life is not None
        for _, connection in self.life.sockets.values():
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def post_free(self, body: bytes, _: Any) -> tuple[int, bytes]:
        if json.loads(body)["free_memory"] and self.forgets:
            self.cached.clear()
        return 200, b""

    def get_features(self, *_: Any) -> tuple[int, bytes]:
        return 200, json.dumps({"max_upload_size": self.max_upload_size}).encode()

    def moment(self, name: str) -> None:
        self.moments[name] += 1
        if (name, self.moments[name]) in self.kills:
            self.restart()
        self.on_moment(name, self.moments[name])

    def save(self, picture: str) -> dict[str, Any]:
        """Makes a file out of a picture's name, under a name of its own; one that it keeps is not made again."""
        name = self.cached.get(picture)
        if name is None:
            name = f"clip_{len(self.saved) + 1:05d}_.mp4"
            self.files[name] = f"a video of {picture}".encode() * 100
            self.saved.append(picture)
            self.cached |= {picture: name} if self.keeps_outputs else {}
        kept = {"filename": name, "subfolder": "video", "type": "output"}
        shown = {"filename": "shown.png", "subfolder": "", "type": "temp"}
        return {"2": {"images": [kept], "animated": [True], "text": [name]}, "3": {"images": [shown], "gifs": [kept]}}


@contextmanager
def running() -> Iterator[FakeComfy]:
    """One that is up, and is killed in the end."""
    server = FakeComfy()
    server.start()
    yield server
    server.step.set()
    server.kill()


def write_pictures(folder: Path, count: int) -> list[Path]:
    """Files that count as pictures by their names, each with content of its own."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"p{number:02d}.png" for number in range(count)]
    for path in paths:
        path.write_bytes(f"picture {path.name}".encode())
    return paths
