"""The contract of a filter, and stages that run beside each other.

A filter takes frames one by one and gives frames one by one: float [height, width, 3] from 0 to 1 on the CPU. It
holds a bounded number of them, keeps their order, and ends when its input ends, so filters are put one into another.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from torch import Tensor

from ...common.errors import I2VError, InputError

Item = TypeVar("Item")
Frames = Iterable[Tensor]
"""Frames in their order, each float [height, width, 3] from 0 to 1 on the CPU."""
Filter = Callable[[Frames], Iterator[Tensor]]
"""Frames in, frames out."""

DEPTH = 4
"""Frames that wait between two stages."""
_POLL_S = 0.1
_END = object()


class FrameError(I2VError):
    """A stage failed at a frame."""


class Ahead(Generic[Item]):
    """A stage that runs in a thread of its own, at most `depth` frames ahead of whoever takes them.

    Use it as a context manager: at its end the thread ends too, within a tenth of a second after its current frame. An
    error of the stage is raised where its frame is missed; one of the pack's own names the frame.
    """

    def __init__(self, frames: Iterable[Item], depth: int = DEPTH) -> None:
        self._frames = frames
        self._waiting: queue.Queue[Any] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="i2v frames", daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self._thread.start()
        return self._taken()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _work(self) -> None:
        number = 0
        try:
            for frame in self._frames:
                if not self._put(frame):
                    break
                number += 1
            self._put(_END)
        except InputError as error:
            self._put(FrameError(f"Frame {number}: {error}"))
        except BaseException as error:  # whatever it is, it belongs to whoever waits for the frame
            self._put(error)
        finally:
            close = getattr(self._frames, "close", None)  # a generator's resources end with its stage
            if close is not None:
                close()

    def _put(self, item: Any) -> bool:
        """Hands an item over; False when nobody takes any more."""
        while not self._stopped.is_set():
            try:
                self._waiting.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False

    def _taken(self) -> Iterator[Item]:
        while True:
            item = self._waiting.get()
            if item is _END:
                return
            if isinstance(item, BaseException):
                raise item
            yield item


def checked(frames: Frames) -> Iterator[Tensor]:
    """The frames in three channels, grey ones repeated and without transparency.

    Raises InputError for what is no frame, or of another size than the first.
    """
    first: Tensor | None = None
    for frame in frames:
        _check(frame, first)
        first = frame if first is None else first
        yield frame.detach()[..., :3].expand(-1, -1, 3)


def in_groups(frames: Frames, most: int) -> Iterator[list[Tensor]]:
    """The frames by up to `most` at once. An error comes after the frames before it."""
    group: list[Tensor] = []
    try:
        for frame in frames:
            group.append(frame)
            if len(group) == most:
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def _check(frame: Tensor, first: Tensor | None) -> None:
    if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or not frame.is_floating_point() or 0 in frame.shape:
        raise InputError(f"Expected a frame [height, width, 3] from 0 to 1, found {frame.dtype} {list(frame.shape)}.")
    if first is not None and frame.shape[:2] != first.shape[:2]:
        sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (first, frame)]
        raise InputError(f"Expected frames of one size, found {sizes[0]} and then {sizes[1]}.")
