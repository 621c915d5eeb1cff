"""Errors between a client and a ComfyUI server."""

from collections.abc import Mapping
from typing import Any

from ...common.errors import I2VError, InputError


class ServerError(I2VError):
    """The server cannot be reached, or answers with something else than asked; `status` is HTTP's, if any."""

    def __init__(self, message: str, status: int | None = None, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later: no answer, or an answer that reports a fault of the server's."""
        return self.status is None or self.status >= 500 or self.status in (408, 425, 429)


class RunTimeoutError(ServerError):
    """A prompt did not end in time; it has been cancelled."""


class PromptRefusedError(InputError):
    """ComfyUI found a prompt invalid, wholly or in part; `node_errors` is its own account, by node id."""

    def __init__(self, message: str, node_errors: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.node_errors = node_errors


def refusal(answer: Mapping[str, Any]) -> PromptRefusedError:
    """The server's account of an invalid prompt as one sentence."""
    node_errors: Mapping[str, Any] = answer.get("node_errors") or {}
    reasons = [
        f"node {node_id} ({node['class_type']}): {_reason(error)}"
        for node_id, node in node_errors.items()
        for error in node["errors"]
    ]
    if not reasons:
        error = answer.get("error")
        reasons = [_reason(error) if isinstance(error, Mapping) else str(error)]
    return PromptRefusedError(f"ComfyUI refused the prompt: {'; '.join(reasons)}", node_errors)


def _reason(error: Mapping[str, Any]) -> str:
    message, details = (str(error.get(key, "")).strip().rstrip(".") for key in ("message", "details"))
    return f"{message}: {details}" if details else message
