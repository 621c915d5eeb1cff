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
from ..quality.metrics import similarities
from .stream import DEPTH, Ahead, Frames, checked, in_groups
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
class _Group:
    """Frames that were uploaded together: images for the network [n, 3, height, width], and what it knows of each."""

    images: Tensor
    known: Tensor | None = None


@dataclass(eq=False)
class _Picture:
    """A source frame [height, width, 3], its place in the clip, and its group on the device with its place there.

    The changes and the likeness compare it with the frame before: mean and greatest difference, and the structural
    similarity of small copies.
    """

    frame: Tensor
    index: int
    group: _Group
    place: int
    mean_change: float = 1.0
    greatest_change: float = 1.0
    likeness: float = 1.0

    @property
    def image(self) -> Tensor:
        return self.group.images[self.place]

    @property
    def known(self) -> Tensor:
        if self.group.known is None:
            raise EngineError("Expected a picture that the network has looked at, found one that it has not.")
        return self.group.known[self.place]


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

    Every call has exactly the batch, the last one with its last picture repeated: the network may be compiled for it.
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
        self._downloads = Downloads()
        self.report = Report(batch=max(batch, 1))

    def __call__(self, frames: Frames) -> Iterator[Tensor]:
        """The new frames; at most two batches of source frames are held, and two more that are uploaded ahead.

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
        together = 1 if self._drop_repeats else self.report.batch  # each is compared with the last that was kept
        for number, group in enumerate(in_groups(checked(frames), together)):
            for picture in self._uploaded(group, number * together, kept, uploads):
                if kept is not None and self._drop_repeats and picture.index - kept.index < LONGEST_HOLD:
                    if picture.mean_change < SAME:
                        held = picture
                        self.report.repeated += 1
                        continue
                kept, held = picture, None
                yield picture
        if held is not None:
            yield held

    def _uploaded(
        self, group: Sequence[Tensor], first: int, before: _Picture | None, uploads: Uploads
    ) -> Iterator[_Picture]:
        """Frames on the device, of which the first has that index, each compared there with the one before it."""
        images, found = self._compared(group, before, uploads)
        uploaded = _Group(images)
        for place, (frame, (is_finite, *changes)) in enumerate(zip(group, found, strict=True)):
            if not is_finite:
                raise InputError("Expected finite values, found NaN or infinity.")
            yield _Picture(frame.float().cpu(), first + place, uploaded, place, *changes)

    @torch.inference_mode()
    def _compared(
        self, group: Sequence[Tensor], before: _Picture | None, uploads: Uploads
    ) -> tuple[Tensor, list[list[float]]]:
        """Images [n, 3, height, width], and of each: whether its values are finite, and what `_changes` says.

        All numbers of a group come from the device at once: each wait for it costs more than the work.
        """
        height, width = group[0].shape[:2]
        with uploads.beside():
            raw = uploads.copied(group).permute(0, 3, 1, 2)
            images = raw.clamp(0, 1)
            aligned = uploads.shared(padded(images, -height % self._align, -width % self._align))
            last = images[:1] if before is None else before.image[None, :, :height, :width]
            finite = torch.isfinite(raw).flatten(1).all(1, keepdim=True)
            found = torch.cat([finite, self._changes(torch.cat([last, images]))], 1).tolist()
        if before is None:
            del found[0][1:]
        return aligned, found

    def _changes(self, images: Tensor) -> Tensor:
        """Of each image [n, 3, height, width] after the first, float64 [n - 1, 3]: the mean and greatest difference
        from the one before, and the similarity of small copies, which is 1 where no cuts are looked for."""
        change = (images[1:] - images[:-1]).abs().flatten(1)
        alike = torch.ones(len(change), dtype=torch.float64, device=images.device)
        if self._cut > 0:
            small = F.interpolate(images, (SMALL, SMALL), mode="area")
            alike = similarities(small[1:], small[:-1])
        return torch.stack([change.mean(1).double(), change.amax(1).double(), alike], 1)

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
        times = torch.tensor([item.time for item in wanted]).to(self._device, non_blocking=True)
        sides = [item.first for item in wanted], [item.second for item in wanted]
        first, second = (self._filled(torch.stack([each.image for each in side])) for side in sides)
        known = [self._filled(torch.stack([each.known for each in side])) for side in sides]
        images = self._network(first, second, (known[0], known[1]), self._filled(times))
        height, width, _ = wanted[0].first.frame.shape
        shown = images[: len(wanted), :, :height, :width].float().clamp(0, 1).permute(0, 2, 3, 1).contiguous()
        made = self._downloads.begin(shown)
        for number, item in enumerate(wanted):
            item.made, item.number = made, number

    def _look_at(self, pictures: Iterable[_Picture]) -> None:
        """Finds the features of new pictures, and of those that came with them, once for all pairs they are in."""
        new = [group for group in dict.fromkeys(picture.group for picture in pictures) if group.known is None]
        if not new:
            return
        parts = torch.cat([group.images for group in new]).split(self.report.batch)
        found = torch.cat([self._network.features(self._filled(part))[: len(part)] for part in parts])
        for group, known in zip(new, found.split([len(group.images) for group in new]), strict=True):
            group.known = known

    def _filled(self, items: Tensor) -> Tensor:
        """Items [n, ...] with the last one repeated up to the batch."""
        return torch.cat([items, items[-1:].expand(self.report.batch - len(items), *items.shape[1:])])


def _shown(item: Tensor | _Wanted) -> Tensor:
    """The frame itself; waits for one that is on its way from the device."""
    if isinstance(item, Tensor):
        return item
    if item.made is None:
        raise EngineError("Expected a frame that was made, found one that was not.")
    return item.made.result()[item.number]
