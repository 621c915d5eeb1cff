"""The processes of several devices as their host has them: started, spoken to, watched, and ended all at once."""

from __future__ import annotations

import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.child_process import child_environment, last_line
from ...common.errors import EngineError
from ...common.tensor_pipe import Message, read_message, write_message
from .rank import MEMORY, Start

log = logging.getLogger(__name__)

WORKER = Path(__file__).resolve().with_name("rank_worker.py")
POLL_S = 0.05
"""Seconds between checks for cancellation while the processes compute."""
GRACE_S = 5.0
SETTLE_S = 1.0
"""Seconds after a first failure in which others are heard of, one of which may be its cause."""
VARIABLES = {"NCCL_NVLS_ENABLE": "0", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
"""Without NVLink's multicast, which gains nothing between a few GPUs; meetings stay in this machine."""


@dataclass(frozen=True)
class Patience:
    """Seconds of silence after which processes count as hanging: while they start and load, and in a call.

    A first call does libraries' first-use work.
    """

    load_s: float = 900.0
    first_call_s: float = 600.0
    call_s: float = 300.0


class RankProcesses:
    """One process for each device. After any error, interruption or silence all of them are ended, and none is left."""

    def __init__(self, patience: Patience, poll: Callable[[], None], worker: Path = WORKER) -> None:
        self._patience, self._poll, self._worker = patience, poll, worker
        self._children: list[_Child] = []
        self._folders: list[Path] = []
        weakref.finalize(self, _end, self._children, self._folders)
        self._answers: queue.Queue[tuple[int, Message | None]] = queue.Queue()
        self._called = False

    @property
    def pids(self) -> list[int]:
        """The processes' ids; empty while there are none."""
        return [child.process.pid for child in self._children]

    @property
    def are_alive(self) -> bool:
        """Whether all processes are there."""
        return bool(self._children) and all(child.process.poll() is None for child in self._children)

    @property
    def death(self) -> str | None:
        """Sentence on a process that has ended by itself; None while all live, or none was started."""
        return next((child.death() for child in self._children if child.process.poll() is not None), None)

    def start(self, starts: Callable[[str], Sequence[Start]]) -> None:
        """Starts a process for each of `starts(meeting)`, and waits until all have met."""
        self.end()
        folder = Path(tempfile.mkdtemp(prefix="i2v-ranks-"))
        self._folders.append(folder)
        self._answers, self._called = queue.Queue(), False
        try:
            wanted = starts(str(folder / "meeting"))
            for start in wanted:
                log_path = folder / f"{start.rank}.log"
                self._children.append(_Child(self._worker, start, log_path, self._answers))
            for child, start in zip(self._children, wanted, strict=True):
                child.send(asdict(start), {})
            self._listen(self._patience.load_s)
        except BaseException:
            self.end()
            raise

    def ask(self, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor] | None = None) -> Message:
        """The first process's answer, once all have answered.

        Raises EngineError with the reason, and OutOfMemoryError, after ending all processes.
        """
        is_call = "call" in data
        first, later = self._patience.first_call_s, self._patience.call_s
        patience_s = (later if self._called else first) if is_call else self._patience.load_s
        try:
            for child in self._children:
                child.send(data, tensors or {})
            found = self._listen(patience_s)
        except BaseException:
            self.end()
            raise
        self._called = self._called or is_call
        return found

    def end(self) -> None:
        """Kills the processes, waits for their end, and removes their files."""
        _end(self._children, self._folders)

    def _listen(self, patience_s: float) -> Message:
        """The answers of all processes, as the first one's; `poll` is called meanwhile and may raise."""
        found: dict[int, Message] = {}
        deadline = time.monotonic() + patience_s
        while len(found) < len(self._children):
            self._poll()
            try:
                rank, message = self._answers.get(timeout=POLL_S)
            except queue.Empty:
                if time.monotonic() > deadline:
                    missing = next(child for child in self._children if child.rank not in found)
                    reason = f"{missing.words} gave no answer within {patience_s:g} seconds and was ended."
                    raise EngineError(reason) from None
                continue
            if message is None or "error" in message[0]:
                raise self._cause(rank, message)
            found[rank] = message
        return found[0]

    def _cause(self, rank: int, message: Message | None) -> Exception:
        """The first cause of a failure: processes also fail because another one has left them alone."""
        failed = {rank: message}
        deadline = time.monotonic() + SETTLE_S
        with suppress(queue.Empty):
            while (left_s := deadline - time.monotonic()) > 0:
                other, heard = self._answers.get(timeout=left_s)
                if heard is None or "error" in heard[0]:
                    failed.setdefault(other, heard)  # the end of one that has failed says nothing new
        errors = {rank: heard[0] for rank, heard in failed.items() if heard is not None}
        for each, data in errors.items():
            if data.get("kind") == MEMORY:
                return torch.OutOfMemoryError(f"CUDA out of memory: {self._children[each].words} has no room.")
        dead = next((each for each in failed if each not in errors), None)
        if dead is not None:
            return EngineError(self._children[dead].death())
        first = next(iter(errors))
        return EngineError(f"{self._children[first].words} failed: {errors[first]['error']}.")


def _end(children: list[_Child], folders: list[Path]) -> None:
    for child in children:
        child.kill()
    for child in children:
        child.wait()
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    children.clear()
    folders.clear()


_Sent = tuple[Mapping[str, Any], Mapping[str, torch.Tensor]] | None


class _Child:
    """A process and the threads that read its answers and write its messages: one that hangs reads nothing."""

    def __init__(
        self, worker: Path, start: Start, log_path: Path, answers: queue.Queue[tuple[int, Message | None]]
    ) -> None:
        self.rank, self._log_path = start.rank, log_path
        self.words = f"The process of {start.device} (number {start.rank})"
        with log_path.open("wb") as log_file:
            # A list of our own interpreter and our own file: no part of it comes from a user.
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, str(worker)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                env=child_environment(VARIABLES),
                start_new_session=os.name == "posix",
            )
        self._messages: queue.Queue[_Sent] = queue.Queue()
        threading.Thread(target=self._hear, args=(answers,), daemon=True).start()
        threading.Thread(target=self._tell, daemon=True).start()

    def _hear(self, answers: queue.Queue[tuple[int, Message | None]]) -> None:
        stream: Any = self.process.stdout
        with suppress(ValueError, OSError):
            while (message := read_message(stream)) is not None:
                answers.put((self.rank, message))
        answers.put((self.rank, None))

    def send(self, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> None:
        """Has a message sent; a dead process is heard of among the answers."""
        self._messages.put((data, tensors))

    def _tell(self) -> None:
        stream: Any = self.process.stdin
        with suppress(ValueError, OSError):
            while (message := self._messages.get()) is not None:
                write_message(stream, *message)

    def death(self) -> str:
        """Sentence on a process whose answers have ended."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        status = self.process.poll()
        cause = f"was ended by signal {-status}" if status is not None and status < 0 else f"ended with status {status}"
        return f"{self.words} {cause}; its last words: {last_line(self._log_path)}."

    def kill(self) -> None:
        """Kills the process and all that it has started."""
        with suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(self.process.pid, signal.SIGKILL)
            else:
                self.process.kill()

    def wait(self) -> None:
        """Waits for the end of a killed process, and closes its streams."""
        self._messages.put(None)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE_S)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
