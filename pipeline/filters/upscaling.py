"""Larger frames, tile by tile: tiles of one size, those of several frames in a batch, blended without seams.

One size of tile serves every picture with one engine, and networks too that compile for one size alone. The last
tile of a row is moved back so that it ends at the edge. Near its inner borders a tile sees too little and counts
nothing there; from there its share rises.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.errors import InputError
from ...common.out_of_memory import is_out_of_memory
from .stream import Ahead, Frames, checked
from .transfers import Download, Downloads, Uploads, padded

TILE = 512
"""Edge of a tile in pixels of the source."""
OVERLAP = 64
"""Pixels that neighbouring tiles share. A quarter of them at each border counts nothing: networks that look no further
give what they would give without tiles."""

Enlarge = Callable[[Tensor], Tensor]
"""The network: tiles [n, 3, tile, tile] from 0 to 1 -> [n, 3, tile * scale, tile * scale]."""


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along a side of at least `tile` pixels."""
    last = length - tile
    return [*range(0, last, tile - overlap), last] if last > 0 else [0]


@cache
def shares(length: int, tile: int, overlap: int, scale: int) -> Tensor:
    """Share of each tile along a side in each of its enlarged pixels, [tiles, tile * scale]; they add up to one."""
    firsts = starts(length, tile, overlap)
    place = (torch.arange(tile * scale) + 0.5) / scale
    raw = []
    for first in firsts:
        left = place if first > 0 else torch.full_like(place, tile)
        right = tile - place if first + tile < length else torch.full_like(place, tile)
        raw.append(((torch.minimum(left, right) - overlap / 4) / (overlap / 2)).clamp(0, 1))
    total = torch.zeros(length * scale)
    for first, share in zip(firsts, raw, strict=True):
        total[first * scale :][: tile * scale] += share
    return torch.stack(
        [share / total[first * scale :][: tile * scale] for first, share in zip(firsts, raw, strict=True)]
    )


@dataclass(eq=False)
class _Canvas:
    """A frame on its way: the enlarged picture [3, height, width] so far, and the number of tiles that it lacks."""

    picture: Tensor
    lacking: int
    height: int
    width: int


@dataclass
class _Tile:
    """A tile of a picture, and where it goes: its numbers and first pixels down and across."""

    canvas: _Canvas
    image: Tensor
    row: int
    column: int
    top: int
    left: int


@dataclass
class UpscaleReport:
    """Statistics of a run; `batch` is the number of tiles that memory sufficed for."""

    batch: int
    tiles: int = 0


class Upscaling:
    """The filter. Tiles are enlarged `batch` at a time; when memory runs out the batch is halved, and stays so.

    `size`, height and width in pixels, is that of the new frames, by antialiased bicubic resizing of what the network
    gives; None: `scale` times the old one.
    """

    def __init__(
        self,
        network: Enlarge,
        scale: int,
        *,
        device: torch.device,
        batch: int,
        tile: int = TILE,
        overlap: int = OVERLAP,
        size: tuple[int, int] | None = None,
        on_frame: Callable[[int], None] = lambda done: None,
    ) -> None:
        if not 0 < overlap <= tile // 2:
            raise InputError(f"Expected tiles that overlap by at most half, found {overlap} of {tile} pixels.")
        self._network, self._scale, self._device = network, scale, device
        self._tile, self._overlap, self._size, self._on_frame = tile, overlap, size, on_frame
        self.report, self._downloads = UpscaleReport(max(batch, 1)), Downloads()

    def __call__(self, frames: Frames) -> Iterator[Tensor]:
        """The larger frames in their order; those of two batches of tiles, and a few uploaded ahead, are held."""
        done = 0
        with Ahead(self._uploaded(frames)) as images:
            for frame in self._enlarged(images):
                yield frame
                done += 1
                self._on_frame(done)

    def _uploaded(self, frames: Frames) -> Iterator[Tensor]:
        """Frames as images [3, height, width] on the device."""
        uploads = Uploads(self._device)
        for frame in checked(frames):
            with torch.inference_mode(), uploads.beside():
                raw = uploads.copied([frame])[0].permute(2, 0, 1)
                finite = bool(torch.isfinite(raw).all())
                image = uploads.shared(raw.clamp(0, 1).contiguous())
            if not finite:
                raise InputError("Expected finite values, found NaN or infinity.")
            yield image

    def _enlarged(self, images: Iterable[Tensor]) -> Iterator[Tensor]:
        """Enlarged frames, a batch behind: they are fetched and taken while the device goes on."""
        canvases: deque[_Canvas] = deque()
        tiles: list[_Tile] = []
        ready: list[Download] = []
        for image in images:
            canvas, cut = self._cut(image)
            canvases.append(canvas)
            tiles += cut
            while len(tiles) >= self.report.batch:
                part, tiles = tiles[: self.report.batch], tiles[self.report.batch :]
                self._run(part)
                following = self._finished(canvases)
                yield from (download.result() for download in ready)
                ready = following
        self._run(tiles)
        yield from (download.result() for download in [*ready, *self._finished(canvases)])

    def _cut(self, image: Tensor) -> tuple[_Canvas, list[_Tile]]:
        """An empty canvas for an image [3, height, width], and the image's tiles."""
        _, height, width = image.shape
        with torch.inference_mode():
            whole = padded(image[None], max(self._tile - height, 0), max(self._tile - width, 0))[0]
            _, down, across = whole.shape
            picture = torch.zeros(3, down * self._scale, across * self._scale, device=self._device)
        tops, lefts = (starts(length, self._tile, self._overlap) for length in (down, across))
        canvas = _Canvas(picture, len(tops) * len(lefts), height * self._scale, width * self._scale)
        return canvas, [
            _Tile(canvas, whole[:, top : top + self._tile, left : left + self._tile], row, column, top, left)
            for row, top in enumerate(tops)
            for column, left in enumerate(lefts)
        ]

    def _run(self, tiles: list[_Tile]) -> None:
        """Enlarges tiles, as many at once as fit, and lays them onto their canvases."""
        done = 0
        while done < len(tiles):
            part = tiles[done : done + self.report.batch]
            try:
                with torch.inference_mode():
                    found = self._network(torch.stack([tile.image for tile in part])).float()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.report.batch == 1:
                    raise
                self.report.batch = max(1, len(part) // 2)
                continue
            for tile, enlarged in zip(part, found, strict=True):
                self._lay(tile, enlarged)
            done += len(part)
        self.report.tiles += len(tiles)

    @torch.inference_mode()
    def _lay(self, tile: _Tile, enlarged: Tensor) -> None:
        scale, picture = self._scale, tile.canvas.picture
        height, width = (length // scale for length in picture.shape[1:])
        down = shares(height, self._tile, self._overlap, scale)[tile.row].to(self._device, non_blocking=True)
        across = shares(width, self._tile, self._overlap, scale)[tile.column].to(self._device, non_blocking=True)
        place = picture[:, tile.top * scale :, tile.left * scale :][:, : self._tile * scale, : self._tile * scale]
        place += enlarged * (down[:, None] * across)
        tile.canvas.lacking -= 1

    @torch.inference_mode()
    def _finished(self, canvases: deque[_Canvas]) -> list[Download]:
        """The first frames of those on their way that lack no tile any more."""
        found: list[Download] = []
        while canvases and not canvases[0].lacking:
            canvas = canvases.popleft()
            image = canvas.picture[None, :, : canvas.height, : canvas.width]
            if self._size is not None and self._size != (canvas.height, canvas.width):
                image = F.interpolate(image, self._size, mode="bicubic", antialias=True)
            found.append(self._downloads.begin(image[0].clamp(0, 1).permute(1, 2, 0).contiguous()))
        return found
