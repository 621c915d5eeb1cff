"""A file beside an engine that saves time, such as kernels compiled at the first run; never required.

A library may run code from such a file, so the file is sealed with this installation's secret as manifests
are, and a file in doubt is not read: its content is then made again.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import StorageError

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
TIMING_CACHE = "timing.cache"
"""Name of the timing cache, the measured times of single layers, in the folder that a build writes to."""
_SEAL_BYTES = 32


@contextmanager
def borrowed(cache: SealedCache, folder: Path) -> Iterator[None]:
    """Puts the timing cache of earlier builds into a build's folder, and takes it back with the build's additions.

    A disk that refuses does not end the build by this: layers are measured again.
    """
    file, kept = folder / TIMING_CACHE, cache.read()
    with suppress(OSError):
        if kept is not None:
            file.write_bytes(kept)
    yield
    with suppress(OSError):
        measured = file.read_bytes() if file.is_file() else kept
        file.unlink(missing_ok=True)
        if measured is not None and measured != kept:
            cache.path.parent.mkdir(parents=True, exist_ok=True)
            cache.write(measured)


@dataclass(frozen=True)
class SealedCache:
    """One file in an engine's folder. `secret` and `staging` are the store's."""

    path: Path
    secret: Callable[[], bytes]
    staging: Callable[[], AbstractContextManager[Path]]

    def read(self) -> bytes | None:
        """Content of the file; None without a file that this installation wrote for this engine."""
        try:
            if self.path.is_symlink() or not self.path.is_file() or self.path.stat().st_size > MAX_BYTES:
                return None
            sealed = self.path.read_bytes()
            data = sealed[_SEAL_BYTES:]
            whole = bool(data) and hmac.compare_digest(sealed[:_SEAL_BYTES], self._seal(data))
        except (OSError, StorageError) as error:
            log.info("%s cannot be read and is made again: %s", self.path, error)
            return None
        return data if whole else None

    def write(self, data: bytes) -> None:
        """Keeps `data` in place of the earlier content; a disk that refuses is a line in the log."""
        if len(data) > MAX_BYTES - _SEAL_BYTES:
            return
        try:
            with self.staging() as folder:
                staged = folder / self.path.name
                staged.write_bytes(self._seal(data) + data)
                staged.replace(self.path)
        except (OSError, StorageError) as error:
            log.info("%s cannot be kept: %s", self.path, error)

    def _seal(self, data: bytes) -> bytes:
        named = f"side cache\0{self.path.parent.name}\0{self.path.name}\0".encode()
        return hmac.new(self.secret(), named + data, hashlib.sha256).digest()
