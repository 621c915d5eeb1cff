"""Pictures to a server, within its limit and that of a proxy before it."""

from __future__ import annotations

from .errors import ServerError
from .http import Http
from .messages import printable

LARGE_BYTES = 1 << 20
"""From here on the server is asked for its limit, and a connection that breaks may be a limit's doing."""


def upload(http: Http, content: bytes, name: str) -> str:
    """Sends an encoded image and returns its name for LoadImage.

    Raises ServerError with the status 413 for one that is larger than the server takes; nothing is sent where it says
    so beforehand.
    """
    name, is_large = printable(name), len(content) > LARGE_BYTES
    limit = _limit(http) if is_large else None
    if limit is not None and len(content) > limit:
        raise _too_large(http, name, len(content), f" ({limit / 1e6:.1f} MB)")
    try:
        answer = http.json("/upload/image", files={"image": (name, content, "application/octet-stream")})
    except ServerError as error:
        if error.status == 413 or (error.status is None and is_large and _is_there(http)):
            raise _too_large(http, name, len(content), "") from error
        raise
    return f"{answer['subfolder']}/{answer['name']}" if answer.get("subfolder") else answer["name"]


def _limit(http: Http) -> int | None:
    """The server's limit in bytes, as far as it says."""
    try:
        found = http.json("/features").get("max_upload_size")
    except (ServerError, AttributeError):
        return None
    return found if type(found) is int else None


def _is_there(http: Http) -> bool:
    """Whether the server answers, and so has broken off by intent."""
    try:
        http.json("/queue")
    except ServerError:
        return False
    return True


def _too_large(http: Http, name: str, size_bytes: int, limit: str) -> ServerError:
    return ServerError(
        f"{name} with {size_bytes / 1e6:.1f} MB is larger than {http.url} takes{limit}: start ComfyUI with a larger "
        "--max-upload-size, and raise the limit of a proxy before it.",
        413,
    )
