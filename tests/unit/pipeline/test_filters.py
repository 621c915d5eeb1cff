"""Filters: exact times, cuts, repeats, batches, memory that runs out, and stages beside each other."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.filters.interpolation import Interpolation
from i2v_tensorrt.pipeline.filters.stream import Ahead, FrameError
from i2v_tensorrt.pipeline.filters.timing import Timing, by_count, by_factor, by_rate

CPU = torch.device("cpu")


class Blend:
    """Stands for a network: blends by the time, and notes what it was asked."""

    def __init__(self, fits: int = 1000) -> None:
        self.fits, self.calls, self.looked_at = fits, [], 0

    def features(self, images: Tensor) -> Tensor:
        self.looked_at += len(images)
        return images[:, :1]

    def __call__(self, first: Tensor, second: Tensor, known: tuple[Tensor, Tensor], times: Tensor) -> Tensor:
        if len(first) > self.fits:
            raise torch.OutOfMemoryError("out of memory")
        assert torch.equal(known[0], first[:, :1]) and torch.equal(known[1], second[:, :1])
        self.calls.append(len(first))
        return torch.lerp(first, second, times.view(-1, 1, 1, 1))


def ramp(count: int, height: int = 20, width: int = 24) -> list[Tensor]:
    """A picture that grows brighter, the same step every frame."""
    texture = torch.rand(height, width, 3, generator=torch.Generator().manual_seed(0)) * 0.1
    return [texture + 0.8 * index / max(count - 1, 1) for index in range(count)]


def made(
    timing: Timing, frames: list[Tensor], network: Blend | None = None, **options: Any
) -> tuple[list[Tensor], Any]:
    options = {"align": 16, "batch": 4, "cut": 0.0, **options}
    found = Interpolation(network or Blend(), timing, device=CPU, **options)
    return list(found(frames)), found.report


def test_twice_as_many_frames_keep_the_originals_and_hold_the_last() -> None:
    frames = ramp(5)
    found, report = made(by_factor(2), frames)
    assert len(found) == 10 and report.made == 4
    assert all(torch.equal(found[2 * index], frame) for index, frame in enumerate(frames))
    assert torch.equal(found[9], frames[4])
    assert torch.allclose(found[3], (frames[1] + frames[2]) / 2, atol=1e-6)


@given(
    count=st.integers(1, 12),
    step=st.fractions(Fraction(1, 8), Fraction(4), max_denominator=30),
    batch=st.integers(1, 7),
)
def test_every_new_frame_shows_its_exact_time(count: int, step: Fraction, batch: int) -> None:
    frames = ramp(count, 8, 8)
    found, report = made(Timing(step), frames, batch=batch, align=8)
    assert len(found) == math.ceil(count / step)
    for number, frame in enumerate(found):
        position = min(float(number * step), count - 1)
        wanted = frames[0] + (frames[-1] - frames[0]) * position / max(count - 1, 1)
        assert torch.allclose(frame, wanted, atol=1e-5)
    assert report.made <= len(found)


def test_rates_are_fractions_that_do_not_drift() -> None:
    film = by_rate(Fraction(24000, 1001), 60.0)
    assert film.step == Fraction(24000, 1001) / 60
    assert by_rate(Fraction(25), 29.97).step == Fraction(25 * 1001, 30000)
    assert film.length(24000) == round(24000 / film.step) == 60060


def test_a_count_is_met_exactly() -> None:
    for count in (1, 7, 10, 23):
        assert len(made(by_count(10, count), ramp(10))[0]) == count


@pytest.mark.parametrize("bad", [0.0, -2.0, float("nan"), float("inf"), 1000.0, 0.001])
def test_a_factor_that_makes_no_sense_is_refused(bad: float) -> None:
    with pytest.raises(InputError, match="Expected"):
        by_factor(bad)


@pytest.mark.parametrize("batch", [1, 2, 3, 4])
def test_nothing_is_mixed_across_a_cut(batch: int) -> None:
    generator = torch.Generator().manual_seed(1)
    one, other = (torch.rand(32, 32, 3, generator=generator) for _ in range(2))
    frames = [one, one * 0.97, other, other * 0.97]
    found, report = made(by_factor(4), frames, cut=0.2, batch=batch)
    assert report.cuts == [2], "whether or not both frames were uploaded together"
    at_cut = found[4:8]
    assert [min(float((frame - each).abs().max()) for each in frames) for frame in at_cut] == [0.0] * 4
    assert [torch.equal(frame, frames[1]) for frame in at_cut] == [True, True, False, False]


def test_a_still_pair_is_given_back_as_it_is() -> None:
    frame = torch.rand(16, 16, 3)
    network = Blend()
    found, _ = made(by_factor(3), [frame, frame + 0.001, frame], network)
    assert network.calls == [] and len(found) == 9


def test_frames_that_repeat_are_no_pictures_of_their_own() -> None:
    distinct = ramp(4, 16, 16)
    on_twos = [frame for frame in distinct for _ in range(2)]
    found, report = made(by_factor(1), on_twos, drop_repeats=True)
    steps = torch.stack([frame.mean() for frame in found]).diff()
    assert len(found) == 8 and report.repeated == 4
    assert torch.allclose(steps[:6], steps[:6].mean().expand(6), atol=1e-4)
    plain, _ = made(by_factor(1), on_twos)
    assert all(torch.equal(a, b) for a, b in zip(plain, on_twos, strict=True))


def test_a_long_rest_stays_a_rest() -> None:
    frames = ramp(2, 16, 16)
    resting = [frames[0]] * 9 + [frames[1]]
    found, _ = made(by_factor(1), resting, drop_repeats=True)
    assert torch.equal(found[3], frames[0]) and torch.equal(found[5], frames[0])


def test_pairs_are_batched_and_each_picture_is_looked_at_once() -> None:
    network = Blend()
    made(by_factor(3), ramp(9), network, batch=6)
    assert network.calls == [6, 6, 6] and network.looked_at == 12, "the last calls are filled up"


def test_when_memory_runs_out_the_batch_is_halved_and_stays_so() -> None:
    network = Blend(fits=3)
    whole, _ = made(by_factor(2), ramp(18), batch=1)
    found, report = made(by_factor(2), ramp(18), network, batch=8)
    assert max(network.calls) == 2 and report.batch == 2
    assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))
    with pytest.raises(torch.OutOfMemoryError):
        made(by_factor(2), ramp(4), Blend(fits=0), batch=2)


def test_a_film_does_not_lie_in_memory() -> None:
    taken = 0

    def film() -> Iterator[Tensor]:
        nonlocal taken
        for frame in ramp(200, 8, 8):
            taken += 1
            yield frame

    ahead: list[float] = []
    for number, _ in enumerate(Interpolation(Blend(), by_factor(2), device=CPU, align=8, batch=4, cut=0.0)(film())):
        ahead.append(taken - number / 2)
    assert max(ahead) <= 20  # two batches of four, eight uploaded ahead, and the pair between


def test_the_next_batch_is_there_while_the_last_one_s_frames_are_taken() -> None:
    given: list[Tensor] = []

    def source() -> Iterator[Tensor]:
        for frame in ramp(40):
            given.append(frame)
            yield frame

    found = Interpolation(Blend(), by_factor(2), device=CPU, align=1, batch=8, cut=0.0)(source())
    next(found)
    used, waited = 2 * 8 + 1, time.monotonic() + 5  # a batch is made before the frames of the one before are given
    while len(given) < used + 8 and time.monotonic() < waited:
        time.sleep(0.01)
    assert used + 8 <= len(given) <= used + 16, "eight wait to be taken over"
    found.close()


def test_a_long_rest_does_not_lie_in_memory_either() -> None:
    taken = 0

    def rest() -> Iterator[Tensor]:
        nonlocal taken
        yield from ramp(2, 8, 8)
        for _ in range(200):
            taken += 1
            yield torch.zeros(8, 8, 3)

    found = Interpolation(Blend(), by_factor(2), device=CPU, align=8, batch=4, cut=0.0)(rest())
    for number, _ in enumerate(found):
        assert taken - number / 2 <= 20


def test_what_is_no_frame_is_refused_with_its_number() -> None:
    with pytest.raises(FrameError, match="^Frame 1: Expected frames of one size, found 24x20 and then 20x20"):
        made(by_factor(2), [torch.rand(20, 24, 3), torch.rand(20, 20, 3)])
    with pytest.raises(FrameError, match="^Frame 1: Expected finite values"):
        made(by_factor(2), [torch.rand(20, 24, 3), torch.full((20, 24, 3), float("nan"))])
    with pytest.raises(FrameError, match="^Frame 0: Expected a frame"):
        made(by_factor(2), [torch.rand(20, 24)])


def test_grey_frames_and_such_with_transparency_go_together() -> None:
    grey, rgb = torch.rand(16, 16, 1), torch.rand(16, 16, 4)
    found, _ = made(by_factor(2), [grey, rgb])
    assert torch.equal(found[0], grey.expand(-1, -1, 3)) and torch.equal(found[2], rgb[..., :3])
    assert torch.allclose(found[1], (found[0] + found[2]) / 2, atol=1e-6)


def test_no_frames_give_no_frames() -> None:
    assert made(by_factor(2), []) == ([], made(by_factor(2), [])[1])


def test_a_stage_ahead_keeps_the_order_and_stays_near() -> None:
    taken = 0

    def frames() -> Iterator[Tensor]:
        nonlocal taken
        for number in range(50):
            taken = number + 1
            yield torch.full((1, 1, 3), float(number))

    with Ahead(frames(), depth=3) as stream:
        for number, frame in enumerate(stream):
            assert frame[0, 0, 0] == number and taken <= number + 6


def test_an_error_in_a_stage_names_its_frame_and_ends_the_others() -> None:
    ended = threading.Event()

    def frames() -> Iterator[Tensor]:
        try:
            yield torch.zeros(1, 1, 3)
            yield torch.zeros(1, 1, 3)
            raise InputError("Expected a picture, found none.")
        finally:
            ended.set()

    found = []
    with pytest.raises(FrameError, match=r"^Frame 2: Expected a picture, found none\.$"), Ahead(frames()) as stream:
        found.extend(stream)
    assert len(found) == 2 and ended.is_set()


def test_an_interruption_ends_a_stage_that_could_go_on_for_ever() -> None:
    def endless() -> Iterator[Tensor]:
        while True:
            yield torch.zeros(1, 1, 3)

    before = threading.active_count()
    started = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        Ahead(Interpolation(Blend(), by_factor(2), device=CPU, align=1, batch=2)(endless())) as stream,
    ):
        for number, _ in enumerate(stream):
            if number == 5:
                raise KeyboardInterrupt
    assert threading.active_count() == before and time.monotonic() - started < 60
