"""What stands between people and a ComfyUI, in small: a reverse proxy that asks, refuses, limits and cuts idle sockets.

It is a forward proxy too, for requests that name another host. One connection serves one request.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

NAME = "pod.invalid"
"""A name that nobody can look up: a proxy alone leads there."""
HEAD_BYTES = 1 << 16
ANSWER = "HTTP/1.1 {} Refused\r\nContent-Length: 0\r\nConnection: close\r\n{}\r\n"


@dataclass
class Request:
    """The head of a request."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query))


@dataclass
class Gateway:
    """The proxy of a server at `port`, with its rules."""

    upstream: int
    port: int = 0
    prefix: str = ""
    refuses: Callable[[Request], int | None] = lambda request: None
    """Function to a status for a request that does not pass."""
    leads_to: str = ""
    """The place that goes with such a status."""
    resets: Callable[[Request], bool] = lambda request: False
    """Whether to break off while a request is sent."""
    idle_s: float = 60.0
    seen: list[Request] = field(default_factory=list)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            data = b""
            while b"\r\n\r\n" not in data and len(data) < HEAD_BYTES:
                if not (more := client.recv(4096)):
                    return
                data += more
            head, _, body = data.partition(b"\r\n\r\n")
            request = _parsed(head.decode())
            self.seen.append(request)
            if request.method == "CONNECT":
                self._connected(client)
                return
            if self.resets(request):
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # closes with a reset
                return
            parts = urlsplit(request.target)
            status = self.refuses(request) or (None if parts.path.startswith(f"{self.prefix}/") else 404)
            if status:
                place = f"Location: {self.leads_to}\r\n" if self.leads_to else ""
                client.sendall(ANSWER.format(status, place).encode())
                self._drain(client, int(request.headers.get("content-length", 0)) - len(body))
                return
            target = parts.path.removeprefix(self.prefix) + (f"?{parts.query}" if parts.query else "")
            lines = [
                line for line in head.decode().split("\r\n")[1:] if not line.lower().startswith("connection: keep")
            ]
            rest = "\r\n".join([f"{request.method} {target} HTTP/1.1", *lines, "", ""]).encode() + body
            self._connected(client, rest)

    def _connected(self, client: socket.socket, first: bytes | None = None) -> None:
        """Hands bytes on, both ways, until one side ends or is silent for too long."""
        with socket.create_connection(("127.0.0.1", self.upstream)) as server:
            server.settimeout(self.idle_s)
            if first is None:
                client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            else:
                server.sendall(first)
            threading.Thread(target=_hand_on, args=(client, server), daemon=True).start()
            _hand_on(server, client)

    @staticmethod
    def _drain(client: socket.socket, left: int) -> None:
        while left > 0 and (data := client.recv(1 << 16)):
            left -= len(data)


def _hand_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _parsed(head: str) -> Request:
    first, *lines = head.split("\r\n")
    method, target, _ = first.split(" ")
    headers = (line.partition(": ") for line in lines)
    return Request(method, target, {name.lower(): value for name, _, value in headers})


@contextmanager
def standing(gateway: Gateway, context: ssl.SSLContext | None = None) -> Iterator[Gateway]:
    """The gateway at a port of its own, behind TLS with a context."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gateway.port = listener.getsockname()[1]

        def serve(client: socket.socket) -> None:
            with suppress(OSError):
                gateway.serve(context.wrap_socket(client, server_side=True) if context else client)

        def accept() -> None:
            with suppress(OSError):
                while True:
                    client = listener.accept()[0]
                    threading.Thread(target=serve, args=(client,), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        try:
            yield gateway
        finally:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def self_signed(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """Context of a server with a certificate of its own for 127.0.0.1 and NAME, and the certificate's file.

    The key lies beside it, as key.pem.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
    command += ["-addext", f"subjectAltName=IP:127.0.0.1,DNS:{NAME}", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context, certificate
