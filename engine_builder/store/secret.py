"""The key that an installation seals its engines with."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import StorageError

SECRET_BYTES = 32


@dataclass(frozen=True)
class Secret:
    """A file of 32 random bytes, made on first use in a folder of `staging`, readable by its user alone."""

    path: Path
    staging: Callable[[], AbstractContextManager[Path]]

    def read(self) -> bytes:
        """The key. Raises StorageError when it cannot be made or read, or is damaged."""
        try:
            if not self.path.is_file():
                self._make()
            secret = self.path.read_bytes()
        except OSError as error:
            raise StorageError(f"{self.path} cannot be made or read: {error.strerror or error}.") from error
        if len(secret) != SECRET_BYTES:
            raise StorageError(
                f"{self.path} is damaged (expected {SECRET_BYTES} bytes, found {len(secret)}): "
                "remove it, and the engines will be built again."
            )
        return secret

    def _make(self) -> None:
        with self.staging() as folder:
            staged = folder / "secret"
            handle = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "wb") as stream:
                stream.write(secrets.token_bytes(SECRET_BYTES))
                stream.flush()
                os.fsync(stream.fileno())
            _place_once(staged, self.path)


def _place_once(staged: Path, path: Path) -> None:
    """Gives `staged` the name `path` unless another process was first."""
    try:
        os.link(staged, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without hard links: the race is then settled by the last writer
        staged.replace(path)
    staged.unlink(missing_ok=True)
