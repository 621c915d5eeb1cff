"""Frames between frames: which pairs, at which times, in batches; the network itself is a function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.errors import EngineError, InputError
from ...common.out_of_memory import is_out_of_memory
from ..quality.metrics import ssim
from .stream import DEPTH, Ahead, Frames, check_frame
from .timing import Timing
from .transfers import Download, Downloads, Uploads, padded

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
    """A source frame [height, width, 3], its place in the clip, and its form for the network, on the device.

    `change` and `likeness` compare it with the frame before: mean and greatest difference, and that of small copies,
    of which `small` is its own.
    """

    frame: Tensor
    index: int
    image: Tensor
    mean_change: float = 1.0
    greatest_change: float = 1.0
    likeness: float = 1.0
    small: Tensor | None = None
    known: Tensor | None = None


@dataclass
class _Wanted:
    """A frame to be made at a time between two pictures; `number` is its place in the download that brings it."""

    first: _Picture
    second: _Picture
    time: float
    made: Download | None = None
    number: int = 0


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
        self._downloads = Downloads(device)
        self.report = Report(batch=max(batch, 1))

    def __call__(self, frames: Frames) -> Iterator[Tensor]:
        """The new frames; at most two batches of source frames are held, and one more that is uploaded ahead.

        So the next batch is there when the last one's frames have been taken, which may take longest of all.
        """
        done = 0
        with Ahead(self._pictures(frames), max(DEPTH, self.report.batch)) as pictures:
            for frame in self._resolved(self._planned(pictures)):
                yield frame
                done += 1
                self._on_frame(done)

    def _pictures(self, frames: Frames) -> Iterator[_Picture]:
        """Source frames without those that repeat the one before, the last one in any case; in a thread of its own."""
        uploads = Uploads(self._device)
        kept: _Picture | None = None
        held: _Picture | None = None
        for index, frame in enumerate(frames):
            picture = self._uploaded(frame, index, kept, uploads)
            if kept is not None and self._drop_repeats and index - kept.index < LONGEST_HOLD:
                if picture.mean_change < SAME:
                    held = picture
                    self.report.repeated += 1
                    continue
            kept, held = picture, None
            yield picture
        if held is not None:
            yield held

    @torch.inference_mode()
    def _uploaded(self, frame: Tensor, index: int, before: _Picture | None, uploads: Uploads) -> _Picture:
        """A checked frame on the device, compared there with the one before."""
        check_frame(frame, None if before is None else before.frame)
        frame = frame.detach()[..., :3]
        height, width = frame.shape[:2]
        with uploads.beside():
            raw = uploads.copied(frame).permute(2, 0, 1).expand(3, -1, -1)
            image = raw.clamp(0, 1)
            aligned = uploads.shared(padded(image[None], -height % self._align, -width % self._align)[0])
            small = _small(image) if self._cut > 0 else None
            found = [torch.isfinite(raw).all().double()]
            if before is not None:
                change = (image - before.image[:, :height, :width]).abs()
                alike = 1.0 if small is None or before.small is None else ssim(small, before.small)
                found += [change.mean().double(), change.max().double(), found[0] * alike]
            finite, *compared = torch.stack(found).tolist()
        if not finite:
            raise InputError("Expected finite values, found NaN or infinity.")
        shown = frame if frame.shape[2] == 3 else frame.expand(-1, -1, 3)
        return _Picture(shown.float().cpu(), index, aligned, *compared, small=small)

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
        is_cut = second.likeness < self._cut
        if is_cut:
            self.report.cuts.append(second.index)
        moves = not is_cut and second.greatest_change >= STATIC
        for position in due:
            time = float((position - first.index) / (second.index - first.index))
            if time == 0 or not moves:
                yield second.frame if is_cut and time >= 0.5 else first.frame
            else:
                yield _Wanted(first, second, time)

    def _resolved(self, items: Iterable[Tensor | _Wanted]) -> Iterator[Tensor]:
        """Frames in their order, a batch behind: what was made is taken while the device makes the next.

        Twice a batch of frames are one too, so that a long rest with nothing to make does not pile up.
        """
        ready: list[Tensor | _Wanted] = []
        waiting: list[Tensor | _Wanted] = []
        wanted: list[_Wanted] = []
        for item in items:
            waiting.append(item)
            if isinstance(item, _Wanted):
                wanted.append(item)
            if len(wanted) >= self.report.batch or len(waiting) >= 2 * self.report.batch:
                self._make(wanted)
                yield from map(_shown, ready)
                ready, waiting, wanted = waiting, [], []
        self._make(wanted)
        yield from map(_shown, [*ready, *waiting])

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

    @torch.inference_mode()
    def _run(self, wanted: Sequence[_Wanted]) -> None:
        self._look_at([picture for item in wanted for picture in (item.first, item.second)])
        first, second = ([item.first for item in wanted], [item.second for item in wanted])
        known = _known(first), _known(second)
        times = torch.tensor([item.time for item in wanted], device=self._device)
        images = self._network(_images(first), _images(second), known, times)
        height, width, _ = wanted[0].first.frame.shape
        shown = images[:, :, :height, :width].float().clamp(0, 1).permute(0, 2, 3, 1).contiguous()
        made = self._downloads.begin(shown)
        for number, item in enumerate(wanted):
            item.made, item.number = made, number

    def _look_at(self, pictures: Iterable[_Picture]) -> None:
        """Finds the features of new pictures, once for all pairs that they are in."""
        new = [picture for picture in dict.fromkeys(pictures) if picture.known is None]
        for start in range(0, len(new), self.report.batch):
            part = new[start : start + self.report.batch]
            for picture, known in zip(part, self._network.features(_images(part)), strict=True):
                picture.known = known


def _shown(item: Tensor | _Wanted) -> Tensor:
    """The frame itself; waits for one that is on its way from the device."""
    if isinstance(item, Tensor):
        return item
    if item.made is None:
        raise EngineError("Expected a frame that was made, found one that was not.")
    return item.made.result()[item.number]


def _images(pictures: Sequence[_Picture]) -> Tensor:
    return torch.stack([picture.image for picture in pictures])


def _known(pictures: Sequence[_Picture]) -> Tensor:
    return torch.stack([picture.known for picture in pictures if picture.known is not None])


def _small(image: Tensor) -> Tensor:
    """A copy [SMALL, SMALL, 3] of an image [3, height, width], averaged."""
    return F.interpolate(image[None], (SMALL, SMALL), mode="area")[0].permute(1, 2, 0)
