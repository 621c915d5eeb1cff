"""Requests to a ComfyUI server, with their failures as ServerError."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any, BinaryIO

from .errors import ServerError

if TYPE_CHECKING:
    from http.client import HTTPResponse

# No proxy: the socket goes past it too.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class Http:
    """Requests to the server at `url`, each of which may take `timeout_s`. Raises ServerError for all that fails."""

    url: str
    timeout_s: float

    def json(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> Any:
        """The answer to a request, parsed; a request with a body is a POST."""
        answer = self.request(path, body, content_type)
        try:
            return json.loads(answer)
        except ValueError as error:
            raise ServerError(f"{self.url}{path} should answer in JSON, but answered {answer[:80]!r}") from error

    def request(self, path: str, body: bytes | None = None, content_type: str = "application/json") -> bytes:
        """The answer to a request."""
        with self.open(path, body, content_type) as response:
            return self._read(response.read)

    @contextmanager
    def open(
        self, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> "Iterator[HTTPResponse]":
        """The response to a request, to be read piece by piece."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})  # noqa: S310
        try:
            response = _OPENER.open(request, timeout=self.timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                message = f"{self.url}{path} answered {error.code} {error.reason}"
                raise ServerError(message, error.code, self._read(error.read)) from error
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error
        with response:
            yield response

    def copy(self, response: "HTTPResponse", target: BinaryIO) -> None:
        """Writes the rest of a response to a file."""
        while block := self._read(lambda: response.read(BLOCK_BYTES)):
            target.write(block)

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, HTTPException) as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(f"ComfyUI at {self.url} cannot be reached: {error or type(error).__name__}")
