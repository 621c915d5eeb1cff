"""The store of engines: one folder each, named by its key, published whole or not at all.

A build writes into a staging folder, which becomes the engine by one rename once everything in it is on
disk. An engine that fails its check is moved to quarantine and built again; no file is loaded unchecked.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from ...common.digest import digest
from ...common.errors import DamagedEngineError, EngineError, OtherVersionError, StorageError
from ...common.spec import Target
from . import quarantine
from .manifest import FILE_NAME, MAX_BYTES, FileDigest, Manifest, ParityReport, file_digest, seal, unseal
from .sealed_cache import SealedCache
from .secret import Secret

log = logging.getLogger(__name__)

_KEY = re.compile(r"[0-9a-f]{64}")
_STALE_S = 24 * 3600
_LOCK_POLL_S = 0.2
_REPLACED, _REMOVED = "replaced", "removed"


@dataclass(frozen=True)
class Plan:
    """An engine on disk: its folder and its manifest, whose HMAC has been checked."""

    folder: Path
    manifest: Manifest
    store: EngineStore | None = field(default=None, compare=False, repr=False)
    """None for an engine that is not published yet."""

    def side(self, name: str) -> SealedCache | None:
        """A file of that name beside the plan's own, which saves time and is never required."""
        return None if self.store is None else self.store.sealed_cache(self.folder / name)

    def verified(self, name: str) -> Path:
        """The path of one of the plan's files, after its size and digest were checked.

        For formats that hold data only; a format that is native code must be checked over the very
        bytes that are handed to its runtime (see `read`).
        """
        try:
            path = self._plain(name)
            found = None if path is None else file_digest(path)
        except OSError as error:
            reason = error.strerror or error
            key = self.manifest.key[:12]
            raise DamagedEngineError(f"Engine {key}: the file {name} cannot be read: {reason}.") from error
        self._expect(name, found)
        return self.folder / name

    def verify(self) -> None:
        """Checks every file; raises DamagedEngineError on the first that is missing or differs."""
        for name in self.manifest.files:
            self.verified(name)

    def read(self, name: str) -> bytes:
        """The bytes of one of the plan's files, checked as they are: nothing can change between check and use."""
        try:
            path = self._plain(name)
            data = None if path is None else path.read_bytes()
        except OSError:
            data = None
        self._expect(name, None if data is None else FileDigest(len(data), hashlib.sha256(data).hexdigest()))
        return data or b""

    def _plain(self, name: str) -> Path | None:
        """Path of a plain file, else None: a link could lead elsewhere later, a pipe never ends."""
        path = self.folder / name
        return path if path.is_file() and path.resolve() == self.folder.resolve() / name else None

    def _expect(self, name: str, found: FileDigest | None) -> None:
        expected = self.manifest.files.get(name)
        if expected is None or found != expected:
            reason = "missing" if found is None else "damaged"
            raise DamagedEngineError(f"Engine {self.manifest.key[:12]}: the file {name} is {reason}.")


class EngineStore:
    """The folder of all engines of one installation."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / ".staging"
        self._locks = root / ".locks"
        self._quarantine = root / ".quarantine"
        self._secret = Secret(root / ".secret", self.staging)

    def find(self, key: str) -> Plan | None:
        """The engine of that key, or None when there is none that can be trusted.

        One that cannot be trusted is put aside where the disk allows it; one of another version of the pack is
        left for that version.
        """
        folder = self.root / key
        if not _KEY.fullmatch(key) or not os.path.lexists(folder):
            return None
        try:
            return Plan(folder, unseal(_manifest_text(folder), self._secret.read(), key), self)
        except OtherVersionError as error:
            log.debug("%s", error)
        except EngineError as error:
            try:
                self.quarantine(key, str(error))
            except StorageError as refused:
                log.warning("%s", refused)
        return None

    def plans(self) -> Iterator[Plan]:
        """Every engine that can be trusted, in the order of their keys."""
        names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
        for name in names:
            if _KEY.fullmatch(name) and (plan := self.find(name)):
                yield plan

    @contextmanager
    def lock(self, key: str, while_waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Holds the key against every other process; the operating system frees it when the holder dies.

        `while_waiting` is called every 0.2 s for as long as another has it, and may raise to give up.
        """
        from filelock import FileLock, Timeout

        _make(self._locks)
        lock = FileLock(self._locks / f"{key}.lock")
        while not lock.is_locked:
            try:
                lock.acquire(timeout=_LOCK_POLL_S)
            except Timeout:
                while_waiting()
            except (OSError, NotImplementedError) as error:
                reason = getattr(error, "strerror", None) or error
                raise StorageError(f"Engine {key[:12]} cannot be locked: {reason}.") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A fresh folder to build in, removed at the end unless it was published."""
        _make(self._staging)
        folder = self._staging / f"{os.getpid()}-{secrets.token_hex(8)}"
        _make(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staging: Path, manifest: Manifest) -> Plan:
        """Makes the staging folder the engine `manifest.key`, replacing an older one of that name."""
        folder = self.root / manifest.key
        try:
            (staging / FILE_NAME).write_text(seal(manifest, self._secret.read()), "utf-8")
            for path in [*staging.rglob("*"), staging]:
                _fsync(path)
            with self._set_aside(folder, _REPLACED):
                staging.rename(folder)
            _fsync(self.root)
        except OSError as error:
            raise StorageError(f"The engine could not be saved to {self.root}: {error.strerror or error}.") from error
        return Plan(folder, manifest, self)

    def set_verdict(self, plan: Plan, verdict: ParityReport, details: Mapping[str, str] | None = None) -> Plan:
        """Stores the verdict on an engine that had none, with further details."""
        manifest = replace(plan.manifest, verdict=verdict, details={**plan.manifest.details, **(details or {})})
        try:
            with self.staging() as folder:
                staged = folder / FILE_NAME
                staged.write_text(seal(manifest, self._secret.read()), "utf-8")
                _fsync(staged)
                staged.replace(plan.folder / FILE_NAME)
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"The verdict could not be saved in {plan.folder}: {reason}.") from error
        return Plan(plan.folder, manifest, self)

    def quarantine(self, key: str, reason: str) -> None:
        """Moves an engine out of the way, so that it is built again; keeps the last few for inspection."""
        log.warning("%s It was put aside and will be built again.", reason)
        _make(self._quarantine)
        target = self._quarantine / f"{key}-{secrets.token_hex(4)}"
        try:
            (self.root / key).rename(target)
        except FileNotFoundError:
            log.debug("another process was first")
        except OSError as error:
            raise StorageError(f"Engine {key[:12]} could not be put aside: {error.strerror or error}.") from error
        else:
            quarantine.bound(self._quarantine, target)

    def sealed_cache(self, path: Path) -> SealedCache:
        """See `Plan.side`."""
        return SealedCache(path, self._secret.read, self.staging)

    def timing_cache(self, target: Target) -> SealedCache:
        """Timing cache of the builds for that target, if its library keeps one."""
        return self.sealed_cache(self.root / ".timings" / digest(asdict(target)))

    def log_path(self, key: str) -> Path:
        """Path of the log of the key's last build."""
        return self.root / ".logs" / f"{key}.log"

    def delete(self, key: str) -> bool:
        """Removes an engine; True when there was one.

        The folder leaves its name by one rename first, so that no reader sees half of it.
        """
        folder = self.root / key
        if not _KEY.fullmatch(key) or not os.path.lexists(folder):
            return False
        try:
            with self._set_aside(folder, _REMOVED):
                pass
        except OSError as error:
            raise StorageError(f"Engine {key[:12]} could not be removed: {error.strerror or error}.") from error
        return True

    def sweep(self, now: float | None = None) -> int:
        """Removes folders that dead builds left in staging for more than a day; returns their number.

        The folder of a living process stays, whatever its age. An engine that a publisher had set
        aside when it was killed gets its name back at once.
        """
        self._restore()
        now = time.time() if now is None else now
        stale = [path for path in self._staging.glob("*") if _is_stale(path, now) and not _is_alive(path)]
        for path in stale:
            quarantine.remove(path)
        return len(stale)

    def _restore(self) -> None:
        for old in self._staging.glob(f"{_REPLACED}-*"):
            key = old.name.split("-")[1]
            with suppress(_HeldError, OSError, StorageError), self.lock(key, _give_up):
                if not os.path.lexists(self.root / key):
                    old.rename(self.root / key)

    @contextmanager
    def _set_aside(self, folder: Path, why: str) -> Iterator[None]:
        """Frees the folder's name while the body gives it to another; puts the old one back if that fails."""
        _make(self._staging)
        old = self._staging / f"{why}-{folder.name}-{secrets.token_hex(8)}"
        replaces = os.path.lexists(folder)
        if replaces:
            folder.rename(old)
        try:
            yield
        except BaseException:
            if replaces:
                old.rename(folder)
            raise
        quarantine.remove(old)


class _HeldError(Exception):
    """Another process has the lock."""


def _give_up() -> None:
    raise _HeldError


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"The folder {folder} cannot be made: {error.strerror or error}.") from error


def _manifest_text(folder: Path) -> str:
    path, name = folder / FILE_NAME, f"Engine {folder.name[:12]}"
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise EngineError(f"{name} is a link or a file, expected a folder.")
        if path.is_symlink() or not path.is_file():
            raise EngineError(f"{name} has no manifest that is a plain file.")
        if path.stat().st_size > MAX_BYTES:
            raise EngineError(f"{name} has a manifest of {path.stat().st_size} bytes, expected at most {MAX_BYTES}.")
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{name} has no readable manifest.") from error


def describe_files(folder: Path) -> dict[str, FileDigest]:
    """Size and digest of every file below `folder`, by its relative name."""
    return {
        path.relative_to(folder).as_posix(): file_digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _is_stale(path: Path, now: float) -> bool:
    """Whether the entry is a day old, or a day ahead by a wrong clock; False for one that vanishes meanwhile."""
    try:
        return abs(now - path.lstat().st_mtime) > _STALE_S
    except OSError:
        return False


def _is_alive(staging: Path) -> bool:
    """Whether the process that a staging folder is named by still runs, as far as this machine knows."""
    pid = staging.name.partition("-")[0]
    try:
        import psutil
    except ImportError:  # ComfyUI brings it; without it the clock alone decides
        return False
    return pid.isdecimal() and len(pid) < 10 and psutil.pid_exists(int(pid))


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open folders, and needs no sync of them
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
