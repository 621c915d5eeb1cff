"""Requests to a ComfyUI server, with their failures as ServerError. Needs the package `requests`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from .address import Address
from .errors import ServerError

if TYPE_CHECKING:
    from requests import PreparedRequest, Response, Session

BLOCK_BYTES = 1 << 20
REDIRECTS = (301, 302, 303, 307, 308)


class Http:
    """Requests to a server, which may be silent for `timeout_s`. Raises ServerError for all that fails.

    Proxies of the environment lead to every server but one on this machine; NO_PROXY counts.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        self.url = address.url
        self._address, self._timeout_s = address, timeout_s

    def json(self, path: str, payload: object = None, **more: Any) -> Any:
        """The answer to a request, parsed; one with a payload is a POST of JSON."""
        with self.open(path, payload, **more) as response:
            content = self.content(response)
            try:
                return json.loads(content)
            except ValueError as error:
                body = self._address.hide(repr(content[:80]))
                raise ServerError(f"{self.url}{path} should answer in JSON, but answered {body}") from error

    def post(self, path: str, payload: object) -> None:
        """A POST of JSON whose answer does not count."""
        with self.open(path, payload) as response:
            self.content(response)

    @contextmanager
    def open(
        self, path: str, payload: object = None, params: Mapping[str, str] | None = None, **more: Any
    ) -> Iterator[Response]:
        """The response to a request, to be read piece by piece; further options are those of `requests`."""
        from requests import RequestException

        method = "GET" if payload is None and "files" not in more else "POST"
        options = {**_as_json(payload), **more} if payload is not None else more
        trust = self._address.trust
        try:
            # Nothing is sent twice: a POST that is led on would arrive as another kind of request.
            response = self._session.request(
                method,
                self.url + path,
                params=[*self._address.query, *(params or {}).items()],
                timeout=self._timeout_s,
                verify=trust if isinstance(trust, bool) else str(trust),
                stream=True,
                allow_redirects=method == "GET",
                **options,
            )
        except (RequestException, OSError, ValueError) as error:
            raise self._unreachable(error) from error
        with response:
            if not response.ok or response.status_code in REDIRECTS:
                message = f"{self.url}{path} answered {response.status_code} {response.reason}"
                raise ServerError(message, response.status_code, self.content(response))
            yield response

    def copy(self, response: Response, target: BinaryIO) -> None:
        """Writes the rest of a response to a file."""
        from requests import RequestException

        blocks = response.iter_content(BLOCK_BYTES)
        while True:
            try:
                block = next(blocks, b"")
            except (RequestException, OSError) as error:
                raise self._unreachable(error) from error
            if not block:
                return
            target.write(block)

    def content(self, response: Response) -> bytes:
        """The whole of a response."""
        from requests import RequestException

        try:
            return response.content
        except (RequestException, OSError) as error:
            raise self._unreachable(error) from error

    @cached_property
    def _session(self) -> Session:
        from urllib3 import disable_warnings
        from urllib3.exceptions import InsecureRequestWarning

        if self._address.trust is False:
            disable_warnings(InsecureRequestWarning)  # at every request, of what the user has chosen
        session = _session_without(tuple(name for name, _ in self._address.asked_headers))
        session.trust_env = not self._address.is_local
        session.headers.update({**self._address.headers, "Accept-Encoding": "identity"})
        session.auth = self._authorize  # which keeps a .netrc from taking its place
        return session

    def _authorize(self, request: PreparedRequest) -> PreparedRequest:
        if self._address.authorization:
            request.headers["Authorization"] = self._address.authorization
        return request

    def _unreachable(self, error: Exception) -> ServerError:
        return ServerError(f"ComfyUI at {self.url} cannot be reached: {self._address.hide(reason_of(error))}")


def _session_without(names: tuple[str, ...]) -> Session:
    """A session that takes those headers off a request that is led to another host, as `requests` does with its own."""
    from requests import Session

    class OneHost(Session):
        def rebuild_auth(self, prepared_request: PreparedRequest, response: Response) -> None:
            super().rebuild_auth(prepared_request, response)
            if self.should_strip_auth(str(response.request.url), str(prepared_request.url)):
                for name in names:
                    prepared_request.headers.pop(name, None)

    return OneHost()


def reason_of(error: BaseException) -> str:
    """The innermost reason of a library's error, without the address that the outer ones repeat."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    if isinstance(inner, BaseException):
        return reason_of(inner)
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            "its certificate is not trusted: name the file of the one that signed it (--ca), or take any (--insecure)"
        )
    return text


def _as_json(payload: object) -> dict[str, Any]:
    """A body of JSON for `requests`, whose own refuses NaN; ComfyUI reads it and says what it makes of it."""
    return {"data": json.dumps(payload).encode(), "headers": {"Content-Type": "application/json"}}
