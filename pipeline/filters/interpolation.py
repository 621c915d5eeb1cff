"""Frames between frames: which pairs, at which times, in batches; the network itself is a function."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.errors import InputError
from ...common.out_of_memory import is_out_of_memory
from ..quality.metrics import ssim
from .stream import Frames
from .timing import Timing

STATIC = 1 / 255
"""Frames that differ nowhere by more are the same to a viewer: nothing is between them."""
SAME = 0.2 / 255
"""Mean difference below which a frame repeats the one before, in files too whose encoder changed it a little."""
LONGEST_HOLD = 3
"""Frames for which drawings are held at most; a longer rest is a rest."""
SMALL = 32
"""Edge of the copies on which cuts are looked for, as Practical-RIFE does."""
CUT = 0.2
"""Similarity of two small copies below which a cut lies between them."""

OnFrame = Callable[[int], None]
"""Callback with the number of frames given so far; may raise to stop."""


class Between(Protocol):
    """The network: pictures between pairs, and what it knows of each picture alone."""

    def features(self, images: Tensor) -> Tensor:
        """What is known of pictures [n, 3, height, width] alone, [n, channels, height, width]."""
        ...

    def __call__(self, first: Tensor, second: Tensor, known: tuple[Tensor, Tensor], times: Tensor) -> Tensor:
        """Pictures [n, 3, height, width] at the times [n], 0 to 1, between pictures of which the features are known."""
        ...


@dataclass
class Report:
    """Statistics of a run, in numbers of source frames; `made` counts pictures of the network."""

    cuts: list[int] = field(default_factory=list)
    repeated: int = 0
    made: int = 0
    batch: int = 0
    """The batch that memory sufficed for."""


@dataclass(eq=False)
class _Picture:
    """A source frame [height, width, 3], its place in the clip, and its form for the network once it has one."""

    frame: Tensor
    index: int
    image: Tensor | None = None
    known: Tensor | None = None


@dataclass
class _Wanted:
    """A frame to be made at a time between two pictures."""

    first: _Picture
    second: _Picture
    time: float
    made: Tensor | None = None


class Interpolation:
    """The filter. Pictures between are made `batch` at a time; when memory runs out the batch is halved, and stays so.

    `align` is what the network's sizes are multiples of; pictures are padded to it and cut again. Across a cut, a
    similarity below `cut`, the nearer frame stands. With `drop_repeats` frames that repeat the one before are no
    pictures of their own, so that drawings held for two or three frames move evenly.
    """

    def __init__(
        self,
        network: Between,
        timing: Timing,
        *,
        device: torch.device,
        align: int,
        batch: int,
        cut: float = CUT,
        drop_repeats: bool = False,
        on_frame: OnFrame = lambda done: None,
    ) -> None:
        self._network, self._timing, self._device, self._align = network, timing, device, align
        self._cut, self._drop_repeats, self._on_frame = cut, drop_repeats, on_frame
        self.report = Report(batch=max(batch, 1))

    def __call__(self, frames: Frames) -> Iterator[Tensor]:
        """The new frames, each as soon as it is there; at most a batch of source frames more are held."""
        done = 0
        for frame in self._resolved(self._planned(self._pictures(frames))):
            yield frame
            done += 1
            self._on_frame(done)

    def _pictures(self, frames: Frames) -> Iterator[_Picture]:
        """Source frames without those that repeat the one before, the last one in any case."""
        kept: _Picture | None = None
        held: _Picture | None = None
        for index, frame in enumerate(frames):
            picture = _Picture(_checked(frame, index, kept), index)
            if kept is not None and self._drop_repeats and index - kept.index < LONGEST_HOLD:
                if float((picture.frame - kept.frame).abs().mean()) < SAME:
                    held = picture
                    self.report.repeated += 1
                    continue
            kept, held = picture, None
            yield picture
        if held is not None:
            yield held

    def _planned(self, pictures: Iterable[_Picture]) -> Iterator[Tensor | _Wanted]:
        """Every new frame in order: a frame that is there, or one to be made."""
        timing, made, first = self._timing, 0, None
        last: _Picture | None = None
        for second in pictures:
            if first is not None:
                for item in self._of_pair(first, second, made):
                    yield item
                    made += 1
            first = last = second
        if last is None:
            return
        for _ in range(made, timing.length(last.index + 1)):
            yield last.frame

    def _of_pair(self, first: _Picture, second: _Picture, made: int) -> Iterator[Tensor | _Wanted]:
        """New frames from one picture until before the next."""
        due = list(self._timing.due(first.index, second.index, made))
        if all(position == first.index for position in due):
            yield from (first.frame for _ in due)
            return
        is_cut = self._is_cut(first, second)
        moves = not is_cut and float((second.frame - first.frame).abs().max()) >= STATIC
        for position in due:
            time = float((position - first.index) / (second.index - first.index))
            if time == 0 or not moves:
                yield second.frame if is_cut and time >= 0.5 else first.frame
            else:
                yield _Wanted(first, second, time)

    def _is_cut(self, first: _Picture, second: _Picture) -> bool:
        if self._cut <= 0 or ssim(_small(first.frame), _small(second.frame)) >= self._cut:
            return False
        self.report.cuts.append(second.index)
        return True

    def _resolved(self, items: Iterable[Tensor | _Wanted]) -> Iterator[Tensor]:
        """Frames in their order; those to be made wait until a batch of them is there."""
        waiting: deque[Tensor | _Wanted] = deque()
        wanted: list[_Wanted] = []
        for item in items:
            waiting.append(item)
            if isinstance(item, _Wanted):
                wanted.append(item)
            if len(wanted) >= self.report.batch:
                self._make(wanted)
                wanted = []
            if not wanted:
                yield from _drained(waiting)
        self._make(wanted)
        yield from _drained(waiting)

    def _make(self, wanted: Sequence[_Wanted]) -> None:
        """Makes frames, as many at once as fit."""
        done = 0
        while done < len(wanted):
            part = wanted[done : done + self.report.batch]
            try:
                self._run(part)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.report.batch == 1:
                    raise
                self.report.batch = max(1, len(part) // 2)
                continue
            done += len(part)
        self.report.made += len(wanted)

    def _run(self, wanted: Sequence[_Wanted]) -> None:
        self._look_at([picture for item in wanted for picture in (item.first, item.second)])
        first, second = ([item.first for item in wanted], [item.second for item in wanted])
        known = _known(first), _known(second)
        times = torch.tensor([item.time for item in wanted], device=self._device)
        images = self._network(_images(first), _images(second), known, times)
        height, width, _ = wanted[0].first.frame.shape
        shown = images[:, :, :height, :width].float().clamp(0, 1).permute(0, 2, 3, 1).cpu()
        for item, frame in zip(wanted, shown, strict=True):
            item.made = frame

    def _look_at(self, pictures: Iterable[_Picture]) -> None:
        """Brings new pictures to the device and finds their features, once for all pairs that they are in."""
        new = [picture for picture in dict.fromkeys(pictures) if picture.known is None]
        if not new:
            return
        images = torch.stack([picture.frame for picture in new]).to(self._device).permute(0, 3, 1, 2)
        padded = _padded(images, self._align)
        for start in range(0, len(new), self.report.batch):
            part = slice(start, start + self.report.batch)
            found = self._network.features(padded[part])
            for picture, image, known in zip(new[part], padded[part], found, strict=True):
                picture.image, picture.known = image, known


def _drained(waiting: deque[Tensor | _Wanted]) -> Iterator[Tensor]:
    while waiting:
        item = waiting.popleft()
        frame = item.made if isinstance(item, _Wanted) else item
        if frame is not None:
            yield frame


def _images(pictures: Sequence[_Picture]) -> Tensor:
    return torch.stack([picture.image for picture in pictures if picture.image is not None])


def _known(pictures: Sequence[_Picture]) -> Tensor:
    return torch.stack([picture.known for picture in pictures if picture.known is not None])


def _checked(frame: Tensor, index: int, before: _Picture | None) -> Tensor:
    """The frame as float32 RGB from 0 to 1; raises InputError for another kind of frame or another size."""
    if frame.ndim != 3 or frame.shape[2] not in (1, 3, 4) or not frame.is_floating_point():
        raise InputError(f"Expected frames [height, width, 3] from 0 to 1, found {list(frame.shape)} at {index}.")
    if before is not None and frame.shape[:2] != before.frame.shape[:2]:
        sizes = [f"{each.shape[1]}x{each.shape[0]}" for each in (before.frame, frame)]
        raise InputError(f"Expected frames of one size, found {sizes[0]} and, at {index}, {sizes[1]}.")
    if not bool(torch.isfinite(frame).all()):
        raise InputError(f"Frames must hold finite values, but frame {index} holds NaN or infinity.")
    return frame.detach().float().cpu().clamp(0, 1)[..., :3].expand(-1, -1, 3)


def _small(frame: Tensor) -> Tensor:
    """A copy [SMALL, SMALL, 3] of a frame [height, width, 3], averaged."""
    return F.interpolate(frame.permute(2, 0, 1)[None], (SMALL, SMALL), mode="area")[0].permute(1, 2, 0)


def _padded(images: Tensor, align: int) -> Tensor:
    """Images [n, 3, height, width] up to multiples of `align`: mirrored, or the edge held where they are too small."""
    height, width = images.shape[-2:]
    down, across = -height % align, -width % align
    mode = "reflect" if down < height and across < width else "replicate"
    return F.pad(images, (0, across, 0, down), mode=mode)
