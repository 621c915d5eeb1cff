"""Upscaling by tiles: no seams, any size, frames batched, memory that runs out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.decode import most_at_once
from i2v_tensorrt.pipeline.filters.stream import FrameError
from i2v_tensorrt.pipeline.filters.upscaling import Upscaling, shares, starts
from i2v_tensorrt.runtime.filters.upscale import WIDEST

CPU = torch.device("cpu")
TILE, OVERLAP = 64, 16
REACH = OVERLAP // 4
SIZES = [(64, 64), (128, 96), (65, 64), (97, 131), (113, 64), (200, 77)]


class Enlarger(nn.Module):
    """Convolutions that look `reach` pixels far, then twice the size."""

    def __init__(self, reach: int = REACH) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        widths = [3, *[6] * (reach - 1), 12]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1) for a, b in zip(widths, widths[1:], strict=False))
        for weight in self.parameters():
            weight.data = torch.randn(weight.shape, generator=generator) * (0.25 if weight.ndim > 1 else 0.05)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(len(x))
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return nn.functional.pixel_shuffle(x, 2) * 0.2 + 0.5


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(height, width, 3, generator=torch.Generator().manual_seed(seed))


def enlarged(frames: list[Tensor], network: Any, **options: Any) -> list[Tensor]:
    settings = {"tile": TILE, "overlap": OVERLAP, "batch": 3, **options}
    return list(Upscaling(network, 2, device=CPU, **settings)(frames))


def whole(frame: Tensor, network: nn.Module) -> Tensor:
    with torch.no_grad():
        return network(frame.permute(2, 0, 1)[None])[0].clamp(0, 1).permute(1, 2, 0)


@pytest.mark.parametrize("size", SIZES)
def test_tiles_leave_no_trace_where_the_network_looks_no_further_than_they_allow(size: tuple[int, int]) -> None:
    network = Enlarger()
    (found,) = enlarged([picture(*size)], network)
    assert torch.allclose(found, whole(picture(*size), network), atol=2e-6)


@pytest.mark.parametrize("size", SIZES[3:])
def test_a_network_that_looks_further_is_told_by_this_test(size: tuple[int, int]) -> None:
    network = Enlarger(reach=12)
    (found,) = enlarged([picture(*size)], network)
    assert (found - whole(picture(*size), network)).abs().max() > 1e-4


def jumps(frame: Tensor) -> Tensor:
    """Mean change from each row to the next, without the network's own edges."""
    return frame.diff(dim=0).abs().mean((1, 2))[8:-8]


@pytest.mark.parametrize("size", [(128, 96), (97, 131), (113, 64), (200, 77), (131, 150), (257, 65)])
def test_no_seam_shows_where_tiles_meet_even_for_a_network_that_looks_far(size: tuple[int, int]) -> None:
    network, frame = Enlarger(reach=12), picture(*size)
    (found,) = enlarged([frame], network)
    firsts = starts(size[0], TILE, OVERLAP)
    borders = [2 * first - 1 for first in firsts[1:]] + [2 * (first + TILE) - 1 for first in firsts[:-1]]
    rows = [border - 8 for border in borders if 8 <= border < 2 * size[0] - 9]
    assert rows and jumps(found)[rows].mean() <= 1.1 * jumps(found).mean()
    pasted = torch.cat([whole(part, network) for part in frame.split(TILE)])
    cuts = [2 * at - 9 for at in range(TILE, size[0], TILE) if 2 * at - 9 < len(jumps(pasted))]
    assert jumps(pasted)[cuts].mean() > 1.2 * jumps(pasted).mean()


@pytest.mark.parametrize(("length", "tile", "overlap"), [(64, 64, 16), (65, 64, 16), (300, 64, 32), (129, 64, 8)])
def test_shares_add_up_to_one(length: int, tile: int, overlap: int) -> None:
    total = torch.zeros(length * 2)
    for first, share in zip(starts(length, tile, overlap), shares(length, tile, overlap, 2), strict=True):
        total[2 * first :][: 2 * tile] += share
    assert torch.allclose(total, torch.ones(length * 2), atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (20, 30), (63, 200), (5, 64)])
def test_pictures_smaller_than_a_tile_are_enlarged_too(size: tuple[int, int]) -> None:
    (found,) = enlarged([picture(*size)], lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(found, picture(*size).repeat_interleave(2, 0).repeat_interleave(2, 1), atol=1e-6)


def test_tiles_of_several_frames_share_a_batch_and_the_order_stays() -> None:
    frames, network = [picture(64, 100, seed) for seed in range(5)], Enlarger()
    found = enlarged(frames, network, batch=4)
    assert network.calls == [4, 4, 2]
    for frame, made in zip(frames, found, strict=True):
        assert torch.allclose(made, whole(frame, Enlarger()), atol=2e-6)


def test_the_next_batch_is_begun_before_frames_of_the_last_are_taken() -> None:
    network, frames = Enlarger(), [picture(TILE, TILE, seed) for seed in range(5)]
    made = Upscaling(network, 2, device=CPU, batch=2, tile=TILE, overlap=OVERLAP)(frames)
    begun = [len(network.calls) for _ in made]
    assert network.calls == [2, 2, 1] and begun == [2, 2, 3, 3, 3]


def test_enlarged_tiles_can_be_indexed_by_32_bits() -> None:
    for side, most in ((512, 127), (2048, 7), (4096, 1), (8192, 1)):
        assert most_at_once(side, side, WIDEST) == most
        assert most == 1 or 64 * most * side**2 < 1 << 31 <= 64 * (most + 1) * side**2


def test_when_memory_runs_out_fewer_tiles_are_enlarged_at_once() -> None:
    network = Enlarger()

    def short(x: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return network(x)

    frames = [picture(100, 100, seed) for seed in range(3)]
    run = Upscaling(short, 2, device=CPU, batch=8, tile=TILE, overlap=OVERLAP)
    found = list(run(frames))
    assert run.report.batch == 2 and run.report.tiles == 12 and max(network.calls) == 2
    assert all(torch.allclose(a, whole(b, Enlarger()), atol=2e-6) for a, b in zip(found, frames, strict=True))


def test_a_target_size_is_met() -> None:
    (found,) = enlarged([picture(70, 90)], Enlarger(), size=(105, 135))
    assert found.shape == (105, 135, 3) and 0 <= found.min() and found.max() <= 1


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(FrameError, match=r"^Frame 1: Expected finite values"):
        enlarged([picture(8, 8), torch.full((8, 8, 3), float("inf"))], Enlarger())
    with pytest.raises(InputError, match="overlap by at most half, found 40 of 64"):
        enlarged([picture(8, 8)], Enlarger(), overlap=40)
