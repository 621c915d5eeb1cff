"""Address of a ComfyUI server with what it asks of its clients: who they are, and whose certificate they trust.

Whatever is secret in it, a name and password or a token, stays out of `url`, out of its `repr` and out of sentences.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from ...common.errors import InputError

USER_AGENT = "i2v-tensorrt"
"""Some proxies refuse the names of Python's own libraries."""
HIDDEN, LEAST_SECRET = "***", 4
SCHEMES = {"http": "ws", "https": "wss"}
HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e](?:[\x20-\x7e\t]*[\x21-\x7e])?)[ \t]*")
"""A line of a header: its name, and a value that every server reads alike (RFC 9110, 5.5)."""
OURS = {
    *("accept-encoding", "authorization", "connection", "content-length", "content-type", "host"),
    *("transfer-encoding", "upgrade", "user-agent"),
}
"""Names, in small letters, of headers that the client itself sends."""


@dataclass(frozen=True)
class Address:
    """A server: `url` has neither secrets nor a slash at its end, and is what sentences name."""

    url: str
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Fields that go with every request, such as a token."""
    authorization: str | None = field(default=None, repr=False)
    """The header of that name."""
    asked_headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """Further headers that something before the server asks for; another host never gets them."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """Texts to keep out of sentences, the longest first."""
    trust: Path | bool = True
    """Certificates to trust: those in a file or folder, the system's, or any at all."""

    @property
    def is_local(self) -> bool:
        """Whether the server is on this machine, which no proxy leads to."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        found = {"User-Agent": USER_AGENT, **dict(self.asked_headers)}
        return {**found, "Authorization": self.authorization} if self.authorization else found

    def socket_url(self, client_id: str) -> str:
        """The address of the server's socket for a client; it has the secrets of the query."""
        scheme, *rest = urlsplit(self.url)
        query = urlencode([*self.query, ("clientId", client_id)])
        return urlunsplit((SCHEMES[scheme], rest[0], f"{rest[1]}/ws", query, ""))

    def ssl_context(self) -> ssl.SSLContext | None:
        """Context for the socket of an https server; None for http."""
        if not self.url.startswith("https"):
            return None
        if isinstance(self.trust, Path):
            is_folder = self.trust.is_dir()
            trusted = str(self.trust)
            return ssl.create_default_context(
                cafile=None if is_folder else trusted, capath=trusted if is_folder else None
            )
        context = ssl.create_default_context()
        if not self.trust:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    def hide(self, text: str) -> str:
        """The text with stars for what is secret."""
        for secret in self.secrets:
            text = text.replace(secret, HIDDEN)
        return text


def parse_address(
    text: str, token: str | None = None, trust: Path | bool = True, headers: Iterable[str] = ()
) -> Address:
    """The server's address; http:// is added where it has no scheme.

    A name and a password before the host and a query go with every request, as do the bearer `token` and the lines of
    `headers`. Raises InputError, which shows no secret, for what is no address, for two ways to say who asks, for what
    is no header, and for certificates that cannot be read.
    """
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if parts.scheme not in SCHEMES or not host:
        raise InputError("A server's address is such as http://127.0.0.1:8188 or https://name:password@host/path.")
    place = f"[{host}]" if ":" in host else host
    url = urlunsplit((parts.scheme, f"{place}:{port}" if port else place, parts.path.rstrip("/"), "", ""))
    if token and parts.username is not None:
        raise InputError(f"The address of {url} has a name and a password: expected those or a token, found both.")
    query = tuple(parse_qsl(parts.query, keep_blank_values=True))
    basic = _basic(parts.username, parts.password) if parts.username is not None else None
    asked = tuple(_header(line) for line in headers)
    hidden = [value for _, value in (*query, *asked)]
    address = Address(
        url,
        query,
        f"Bearer {token}" if token else basic,
        asked,
        _secrets(token, basic, parts.username, parts.password, *hidden),
        trust,
    )
    try:
        address.ssl_context()
    except OSError as error:
        raise InputError(f"Expected certificates in {trust}, found: {error.strerror or error}.") from error
    return address


def _header(line: str) -> tuple[str, str]:
    """The name and the value of a header's line; raises InputError, which shows neither."""
    match = HEADER.fullmatch(line)
    if match is None or match[1].lower() in OURS:
        raise InputError(
            "Expected a header such as CF-Access-Client-Id: TEXT, in one line of ASCII, and none that the client "
            "itself sends; a name and password or a token go by the address or --token. Found another line."
        )
    return match[1], match[2]


def _basic(username: str, password: str | None) -> str:
    """The header's value for a name and a password, as percent-encoded in an address."""
    pair = f"{unquote(username)}:{unquote(password or '')}"
    return f"Basic {b64encode(pair.encode()).decode()}"


def _secrets(*values: str | None) -> tuple[str, ...]:
    """Every form in which one of the values may come up in a sentence; what is shorter is in any sentence."""
    given = [value for value in values if value]
    forms = {form for value in given for form in (value, unquote(value), quote(value), value.removeprefix("Basic "))}
    return tuple(sorted((form for form in forms if len(form) >= LEAST_SECRET), key=len, reverse=True))
