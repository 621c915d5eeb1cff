"""Frames through a picture network: brought to its size, range and layout, several at once, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.errors import InputError
from ...common.out_of_memory import is_out_of_memory
from ..filters.stream import Ahead, Frames, checked
from ..filters.transfers import Download, Downloads, Uploads, padded
from .contract import BGR, NCHW, NHW, SCALING, SIGMOID, STRETCH, Contract, More

SQUASH, PAD = "squash", "pad"
FITS = (SQUASH, PAD)
"""How frames meet a network of one size: out of proportion, or in proportion with their edges held."""
GREY = (0.299, 0.587, 0.114)

Network = Callable[[Mapping[str, Tensor]], Tensor]
"""The network: tensors by the file's names -> the output."""


@dataclass(frozen=True)
class Wishes:
    """What the user says of the frames: how they meet a network of one size, their order of colours, further inputs.

    `more` is a further input's tensor; of a picture [frames, height, width, 3] from 0 to 1 the first is taken.
    """

    fit: str = SQUASH
    colours: str = "RGB"
    number: float = 0.5
    more: Tensor | None = None


@dataclass
class PictureReport:
    """Statistics of a run; `batch` is the number of frames that memory sufficed for."""

    batch: int
    made: int = 0


class PictureFilter:
    """The filter. When memory runs out the batch is halved, and stays so. A frame that comes out has as many channels
    as the network gives: one for a mask, which has the frame's own size."""

    def __init__(
        self, network: Network, contract: Contract, *, device: torch.device, batch: int, wishes: Wishes
    ) -> None:
        self._network, self._contract, self._device, self._wishes = network, contract, device, wishes
        self._downloads = Downloads()
        self._span: tuple[float, float] | None = None
        self.report = PictureReport(max(batch, 1) if contract.batches else 1)

    def __call__(self, frames: Frames) -> Iterator[Tensor]:
        """New frames in their order, float32 [height, width, channels] from 0 to 1 on the CPU."""
        with Ahead(self._uploaded(frames)) as images:
            waiting: list[Tensor] = []
            ready: list[Download] = []
            for image in images:
                waiting.append(image)
                if len(waiting) >= self.report.batch:
                    following, waiting = self._run(waiting), []
                    yield from self._finished(ready)
                    ready = following
            following = self._run(waiting)
            yield from self._finished([*ready, *following])

    def _finished(self, downloads: list[Download]) -> Iterator[Tensor]:
        for download in downloads:
            self.report.made += 1
            yield download.result()

    def _uploaded(self, frames: Frames) -> Iterator[Tensor]:
        """Frames as images [3, height, width] on the device."""
        uploads = Uploads(self._device)
        for frame in checked(frames):
            with torch.inference_mode(), uploads.beside():
                image = uploads.copied([frame])[0].permute(2, 0, 1)
                image = uploads.shared(image.clamp(0, 1))
            yield image

    def _run(self, images: list[Tensor]) -> list[Download]:
        """The new frames of some images, as many at once as fit."""
        found: list[Download] = []
        while len(found) < len(images):
            part = images[len(found) : len(found) + self.report.batch]
            try:
                made = self._made(torch.stack(part))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.report.batch == 1:
                    raise
                self.report.batch = max(1, len(part) // 2)
                continue
            found += [self._downloads.begin(each) for each in made]
        return found

    @torch.inference_mode()
    def _made(self, images: Tensor) -> Tensor:
        """New frames [n, height, width, channels] of images [n, 3, height, width]."""
        fitted, used = self._fitted(images)
        inputs = {self._contract.picture: self._given(fitted)}
        size = (fitted.shape[-2], fitted.shape[-1])
        inputs |= {each.name: self._more(each, len(images), size) for each in self._contract.more}
        found = self._as_images(self._network(inputs))
        height, width = (math.ceil(side * self._contract.factor) for side in used)
        found = found[:, :, :height, :width]
        size = self.size(*images.shape[-2:])
        if found.shape[-2:] != size:
            found = F.interpolate(found, size, mode="bilinear", antialias=True)
        return found.clamp(0, 1).permute(0, 2, 3, 1).contiguous()

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the new frames."""
        if self._contract.gives_masks:
            return height, width
        return math.ceil(height * self._contract.factor), math.ceil(width * self._contract.factor)

    def _fitted(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images at a size that the network takes, and the height and width of them that are the frame's."""
        height, width = images.shape[-2:]
        if self._contract.size is None:
            step = self._contract.step
            return padded(images, -height % step, -width % step), (height, width)
        down, across = self._contract.size
        inner = (down, across)
        if self._wishes.fit == PAD:
            ratio = min(down / height, across / width)
            inner = (max(round(height * ratio), 1), max(round(width * ratio), 1))
        resized = F.interpolate(images, inner, mode="bilinear", antialias=True)
        return F.pad(resized, (0, across - inner[1], 0, down - inner[0]), mode="replicate"), inner

    def _given(self, images: Tensor) -> Tensor:
        """Images [n, 3, height, width] from 0 to 1 in the network's channels, range, layout and dtype."""
        contract = self._contract
        if contract.channels == 1:
            images = (images * images.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)
        elif self._wishes.colours == BGR:
            images = images.flip(1)
        mean, deviation = (images.new_tensor(values).view(1, -1, 1, 1) for values in SCALING[contract.range_in])
        images = (images - (mean if contract.channels > 1 else mean.mean())) / (
            deviation if contract.channels > 1 else deviation.mean()
        )
        if contract.channels == 4:
            images = torch.cat([images, torch.ones_like(images[:, :1])], 1)
        images = images if contract.layout == NCHW else images.permute(0, 2, 3, 1)
        return (images.round() if contract.dtype == "uint8" else images).to(getattr(torch, contract.dtype)).contiguous()

    def _more(self, more: More, count: int, size: tuple[int, int]) -> Tensor:
        """A further input's value beside pictures of that number and size; raises InputError for none that fits."""
        dtype = getattr(torch, more.dtype)
        if more.is_number:
            return torch.full([1] * len(more.shape), self._wishes.number, dtype=dtype, device=self._device)
        given = self._wishes.more
        if given is None:
            shape = "a picture" if more.is_picture else f"a tensor {list(more.shape)}"
            raise InputError(f"Expected {shape} for the network's input {more.name[:40]}, found none.")
        given = given.to(self._device, torch.float32)
        if more.is_picture:
            if given.ndim != 4 or given.shape[-1] < 3:
                raise InputError(f"Expected a picture for {more.name[:40]}, found {list(given.shape)}.")
            own, image = more.own_size(self._contract.layout), given[:1, ..., :3].permute(0, 3, 1, 2)
            image = self._given(F.interpolate(image, own or size, mode="bilinear", antialias=True))
            return image.expand(more.shape[0] or count, -1, -1, -1).to(dtype).contiguous()
        sizes = [size or (count if self._contract.batches else 1) for size in more.shape]
        try:
            return given.reshape(-1, *sizes[1:])[:1].expand(*sizes).to(dtype).contiguous()
        except RuntimeError as error:
            raise InputError(
                f"Expected a tensor {list(more.shape)} for {more.name[:40]}, found {list(given.shape)}."
            ) from error

    def _as_images(self, found: Tensor) -> Tensor:
        """The output as images [n, channels, height, width] from 0 to 1."""
        contract = self._contract
        found = found.float()
        if contract.out_layout == NHW:
            found = found[:, None]
        elif contract.out_layout != NCHW:
            found = found.permute(0, 3, 1, 2)
        if contract.range_out == SIGMOID:
            return torch.sigmoid(found)
        if contract.range_out == STRETCH:
            return self._stretched(found)
        mean, deviation = (values[0] for values in SCALING[contract.range_out])
        colours = found[:, :3] * deviation + mean
        if self._wishes.colours == BGR and contract.out_channels > 1:
            colours = colours.flip(1)
        return torch.cat([colours, found[:, 3:]], 1)

    def _stretched(self, found: Tensor) -> Tensor:
        """Values over the span of the first batch, which all frames share: one of their own would flicker."""
        if self._span is None:
            low, high = float(found.min()), float(found.max())
            self._span = (low, max(high - low, 1e-6))
        low, extent = self._span
        return (found - low) / extent
