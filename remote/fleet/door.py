"""The service over HTTP: clips are asked for, looked at, fetched and cancelled by their keys.

aiohttp and not Ray Serve: one process has the queue and its records, answers, and refuses what is too much. Serve's own
queue is in memory and ends with it, and an app behind its proxy that did nothing took up to 0.12 s for a request on two
cores, in 200 requests of 16 at a time.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...common.errors import I2VError, InputError
from ..batch.workflow import PICTURE_SUFFIXES, Workflow, find_input, find_picture, graph_of, set_inputs
from .service import ClipService, ClipState, QueueFullError

if TYPE_CHECKING:
    from aiohttp import web

MOST_BYTES = 64 << 20
THREADS = 64
"""Requests that may be at the disk at once: what is refused does not wait for what is written."""
KEY = "{key:[0-9a-f]{64}}"
STATUSES = {"waiting": 202, "running": 202, "done": 200, "failed": 200}


Result = TypeVar("Result")


def make_app(service: ClipService, token: str | None = None) -> web.Application:
    """The application; with a token, requests need it as a bearer's."""
    from aiohttp import web

    door = Door(service)
    app = web.Application(client_max_size=MOST_BYTES, middlewares=[_guard(token)])
    app.add_routes(
        [
            web.post("/clips", door.submit),
            web.get(f"/clips/{KEY}", door.show),
            web.get(f"/clips/{KEY}/file", door.send),
            web.delete(f"/clips/{KEY}", door.cancel),
            web.get("/health", door.health),
        ]
    )
    return app


class Door:
    """The answers to requests; what touches the disk is done in threads, so that no request waits for another's."""

    def __init__(self, service: ClipService) -> None:
        self._service = service
        self._threads = ThreadPoolExecutor(THREADS, "door")

    async def submit(self, request: web.Request) -> web.Response:
        """`POST /clips`, a form: `workflow`, and perhaps `image`, `into` and several `set`."""
        workflow, picture, suffix = await _read_form(request)
        state = await self._in_thread(self._service.submit, workflow, picture, suffix)
        return _answer(state, STATUSES[state.state], {"Location": f"/clips/{state.key}"})

    async def show(self, request: web.Request) -> web.Response:
        """`GET /clips/KEY`."""
        state = await self._find(request)
        return _answer(state)

    async def send(self, request: web.Request) -> web.FileResponse:
        """`GET /clips/KEY/file`, with `?number=2` for the second."""
        from aiohttp import web

        state = await self._find(request)
        if state.state != "done":
            raise _refusal(409, f"Expected a clip that is done, found one that is {state.state}.")
        number = request.query.get("number", "1")
        if not number.isdecimal() or not 1 <= int(number) <= len(state.files):
            raise _refusal(404, f"Expected a number from 1 to {len(state.files)}, found {number}.")
        return web.FileResponse(state.files[int(number) - 1])

    async def cancel(self, request: web.Request) -> web.Response:
        """`DELETE /clips/KEY`: 202 where it waits or runs, 409 where it has ended."""
        state = await self._find(request)
        if not self._service.cancel(state.key):
            raise _refusal(409, f"Expected a clip that waits or runs, found one that is {state.state}.")
        return _answer(state, 202)

    async def health(self, request: web.Request) -> web.Response:
        """`GET /health`."""
        return _json(self._service.counts())

    async def _in_thread(self, work: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _find(self, request: web.Request) -> ClipState:
        key = request.match_info["key"]
        state = await self._in_thread(self._service.find, key)
        if state is None:
            raise _refusal(404, f"There is no clip {key}.")
        return state


@dataclass(frozen=True)
class Field:
    """A field of a form; a text has no file's name."""

    content: bytes
    filename: str

    @property
    def text(self) -> str:
        """The content as a text."""
        return self.content.decode("utf-8", "replace")


async def _read_form(request: web.Request) -> tuple[Workflow, bytes | None, str]:
    """Workflow, picture and the ending of its name; raises InputError."""
    from aiohttp import web

    if not request.content_type.startswith("multipart/"):
        raise InputError("Expected a form with the field workflow, and image where there is a picture.")
    try:
        fields = await _read_fields(request)
    except (I2VError, web.HTTPException):
        raise
    except Exception as error:  # aiohttp raises whatever its parsers do
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"Expected a form that can be read, found one that cannot: {reason}") from error
    if "workflow" not in fields:
        raise InputError("Expected the field workflow, found none.")
    graph, extra_data = graph_of(_json_of(fields["workflow"][-1].content), "workflow")
    if extra_data:
        raise InputError("Expected a workflow without extra_data, which is stored nowhere and is lost at a restart.")
    prompt = set_inputs(graph, [each.text for each in fields.get("set", ())], lambda _: None)
    if "image" not in fields:
        return Workflow(prompt), None, ""
    image = fields["image"][-1]
    suffix = Path(image.filename).suffix.lower()
    if suffix not in PICTURE_SUFFIXES:
        raise InputError(
            f"Expected a picture's name with {', '.join(sorted(PICTURE_SUFFIXES))}, found {suffix or 'none'}."
        )
    into = fields["into"][-1].text if "into" in fields else None
    place = find_input(prompt, into, lambda _: None) if into else find_picture(prompt)
    return Workflow(prompt, place), image.content, suffix


async def _read_fields(request: web.Request) -> dict[str, list[Field]]:
    """The fields of a form by name, in memory and not through files."""
    from aiohttp import BodyPartReader, web

    fields: dict[str, list[Field]] = {}
    num_bytes = 0
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise InputError("Expected a form of plain fields, found a form in a form.")
        content = bytearray()
        while chunk := await part.read_chunk():
            content += chunk
            num_bytes += len(chunk)
            if num_bytes > MOST_BYTES:
                raise web.HTTPRequestEntityTooLarge(MOST_BYTES, num_bytes)
        fields.setdefault(part.name or "", []).append(Field(bytes(content), part.filename or ""))
    return fields


def _json_of(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise InputError(f"workflow should hold JSON, but does not: {error}.") from error


Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


def _guard(token: str | None) -> Any:
    """Asks for the token, and answers with errors as JSON: 400, 413, 429 and 507 with a sentence."""
    from aiohttp import web

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if token and not hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {token}".encode()):
            return _json({"error": "Expected the token of this service as Authorization: Bearer."}, 401)
        try:
            return await handler(request)
        except QueueFullError as error:
            return _json({"error": str(error)}, 429, {"Retry-After": str(error.retry_after_s)})
        except InputError as error:
            return _json({"error": str(error)}, 400)
        except I2VError as error:
            return _json({"error": str(error)}, 507)
        except web.HTTPRequestEntityTooLarge:
            return _json({"error": f"Expected at most {MOST_BYTES >> 20} MiB."}, 413)

    return middleware


def _answer(state: ClipState, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    files = [f"/clips/{state.key}/file?number={number}" for number in range(1, len(state.files) + 1)]
    shown = {
        "key": state.key,
        "status": state.state,
        "error": state.error,
        "files": files,
        "elapsed_s": state.elapsed_s,
    }
    return _json(shown, status, headers)


def _json(content: dict[str, Any], status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    from aiohttp import web

    return web.json_response(content, status=status, headers=headers)


def _refusal(status: int, sentence: str) -> Exception:
    from aiohttp import web

    kinds = {404: web.HTTPNotFound, 409: web.HTTPConflict}
    return kinds[status](text=json.dumps({"error": sentence}), content_type="application/json")
