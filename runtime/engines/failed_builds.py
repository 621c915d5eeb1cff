"""Record of engines that could not be built in this process, so that a build that fails after minutes fails once."""

from __future__ import annotations

import threading

from ...common.digest import digest
from ...common.errors import EngineError
from ...engine_builder.build.compile import BuildRequest
from ...engine_builder.store.key import engine_key

AGAIN = "It failed before, and is tried again after a restart or by an Engine Builder."


def anew(error: EngineError) -> EngineError:
    """The error without the frames that it went through, which keep all that they name."""
    return type(error)(str(error))


class FailedBuilds:
    """Failed builds by their engine's key; an engine without weights is another one beside other weights."""

    def __init__(self) -> None:
        self._sentences: dict[str, str] = {}
        self._lock = threading.Lock()

    def remember(self, request: BuildRequest, error: EngineError, *, was_alone: bool = False) -> None:
        """Keeps the reason of the build's failure, unless memory was short: there may be more memory the next time.

        A build that `was_alone` on the machine will not find more. A child's errors come as sentences alone, so that
        the sentence decides.
        """
        if was_alone or "memory" not in str(error).lower():
            with self._lock:
                self._sentences[build_name(request)] = str(error)

    def forget(self, request: BuildRequest) -> None:
        """The engine could be built after all."""
        with self._lock:
            self._sentences.pop(build_name(request), None)

    def knows(self, request: BuildRequest) -> bool:
        """Whether the build has failed."""
        with self._lock:
            return build_name(request) in self._sentences

    def check(self, request: BuildRequest) -> None:
        """Raises EngineError, with the reason, if the build has failed."""
        with self._lock:
            sentence = self._sentences.get(build_name(request))
        if sentence is not None:
            raise EngineError(f"{sentence} {AGAIN}")


FAILED = FailedBuilds()
"""The process's."""


def build_name(request: BuildRequest) -> str:
    """Name that distinguishes a build from others."""
    key = engine_key(request.spec, request.aimed_backend.target(request.device))
    return digest([key, dict(request.details)])
