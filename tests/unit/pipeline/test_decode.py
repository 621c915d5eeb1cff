"""Chunks give what the whole gives, whatever the memory; interruptions and real shortage get through."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.decode import BYTES_PER_PIXEL, chunk_size, decode

from ...helpers.toys import raising

FRAMES = 7


def latents() -> torch.Tensor:
    return torch.randn(FRAMES, 4, 2, 3, generator=torch.Generator().manual_seed(1))


def paint(part: torch.Tensor) -> torch.Tensor:
    """Three of the four channels, each place eight pixels wide and high; goes beyond -1..1 at both ends."""
    return part[:, :3].repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)


def whole() -> torch.Tensor:
    return (paint(latents()) / 2 + 0.5).clamp(0, 1).movedim(1, -1)


class Decoder:
    """Remembers how many frames it was given, call after call; runs out of memory where it is told to."""

    def __init__(self, is_short: Callable[[int, int], bool] = lambda call, frames: False) -> None:
        self.sizes, self._is_short = list[int](), is_short

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        self.sizes.append(len(part))
        if self._is_short(len(self.sizes), len(part)):
            raise torch.cuda.OutOfMemoryError("injected")
        return paint(part)


def quiet(done: int, total: int) -> None:
    """Watches no progress."""


@pytest.mark.parametrize("chunk", [1, 3, FRAMES, 100])
def test_chunks_equal_the_whole(chunk: int) -> None:
    told: list[tuple[int, int]] = []
    frames = decode(latents(), paint, chunk, lambda *step: told.append(step))
    assert frames.shape == (FRAMES, 16, 24, 3) and frames.dtype == torch.float32
    assert torch.equal(frames, whole())
    assert told == [(min(done, FRAMES), FRAMES) for done in range(chunk, FRAMES + chunk, chunk)]


def test_half_precision_images_become_float32() -> None:
    frames = decode(latents(), lambda part: paint(part).half(), 2, quiet)
    assert frames.dtype == torch.float32
    assert torch.allclose(frames, whole(), atol=1e-3)


@pytest.mark.parametrize(
    ("chunk", "is_short", "sizes"),
    [
        (FRAMES, lambda call, frames: frames > 3, [7, 3, 3, 1]),
        (6, lambda call, frames: frames > 1, [6, 3, 1, 1, 1, 1, 1, 1, 1]),
        (3, lambda call, frames: frames > 2, [3, 1, 1, 1, 1, 1, 1, 1]),
        (4, lambda call, frames: call == 2, [4, 3, 2, 1]),
    ],
)
def test_out_of_memory_halves_the_chunk_and_loses_nothing(
    chunk: int, is_short: Callable[[int, int], bool], sizes: list[int]
) -> None:
    """At once or midway: what is done is kept."""
    decoder = Decoder(is_short)
    assert torch.equal(decode(latents(), decoder, chunk, quiet), whole())
    assert decoder.sizes == sizes


@pytest.mark.parametrize(("frees", "sizes"), [(1, [FRAMES, FRAMES]), (0, [FRAMES, 3, 3, 1])])
def test_what_is_freed_at_a_shortage_saves_the_chunk(frees: int, sizes: list[int]) -> None:
    decoder, asked = Decoder(lambda call, frames: call == 1), list[int]()

    def on_shortage(frames: int) -> bool:
        asked.append(frames)
        return len(asked) <= frees

    assert torch.equal(decode(latents(), decoder, FRAMES, quiet, on_shortage=on_shortage), whole())
    assert (decoder.sizes, asked) == (sizes, [FRAMES])


def test_one_frame_is_given_up_only_when_nothing_more_is_freed() -> None:
    decoder, asked = Decoder(lambda *_: True), list[int]()

    def on_shortage(frames: int) -> bool:
        asked.append(frames)
        return len(asked) == 2

    with pytest.raises(torch.cuda.OutOfMemoryError):
        decode(latents(), decoder, 2, quiet, on_shortage=on_shortage)
    assert asked == decoder.sizes == [2, 1, 1]
    decoder.sizes.clear()
    with pytest.raises(torch.cuda.OutOfMemoryError):
        decode(latents(), decoder, 4, quiet)
    assert decoder.sizes == [4, 2, 1]


def test_another_failure_is_not_taken_for_a_shortage_and_an_interruption_comes_after_one_chunk() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        decode(latents(), raising(RuntimeError("a bug")), 4, quiet)
    decoder = Decoder()
    with pytest.raises(KeyboardInterrupt):
        decode(latents(), decoder, 2, raising(KeyboardInterrupt()))
    assert decoder.sizes == [2]


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunk_of_nothing_is_refused(chunk: int) -> None:
    with pytest.raises(InputError, match=f"from 1, found {chunk}"):
        decode(latents(), raising(AssertionError("asked to decode nothing")), chunk, quiet)


@given(
    st.integers(-(1 << 30), 1 << 44), st.integers(1, 4096), st.integers(1, 4096), st.integers(1, 256), st.integers(0, 9)
)
def test_chunk_size_is_the_most_that_fits(free_bytes: int, height: int, width: int, frames: int, more: int) -> None:
    chunk, frame_bytes = chunk_size(free_bytes, height, width, frames), BYTES_PER_PIXEL * height * width
    assert 1 <= chunk <= frames
    assert chunk == 1 or chunk * frame_bytes <= free_bytes
    assert chunk == frames or (chunk + 1) * frame_bytes > free_bytes
    assert chunk_size(free_bytes + more * frame_bytes, height, width, frames) >= chunk


SHORTAGES = (
    torch.cuda.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


@given(st.integers(1, 9), st.integers(1, 12), st.lists(st.integers(1, 12), max_size=6), st.sampled_from(SHORTAGES))
def test_any_chunks_under_any_shortage_equal_the_whole(
    count: int, chunk: int, room: list[int], shortage: Exception
) -> None:
    """`room` is how many frames fit in call after call, and all of them once it is used up."""
    scales, left = torch.arange(1, count + 1).reshape(-1, 1, 1, 1), [*room]
    given_latents = latents()[:1] * scales

    def run(part: torch.Tensor) -> torch.Tensor:
        if left and len(part) > left.pop(0):
            raise shortage
        return paint(part)

    expected = decode(given_latents, paint, count, quiet)
    assert torch.equal(decode(given_latents, run, chunk, quiet), expected)


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_a_causal_decoder_is_given_the_first_latent_frame_alone(chunk: int) -> None:
    sizes, told = list[int](), list[tuple[int, int]]()

    def run(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return paint(part).repeat_interleave(1 if len(sizes) == 1 else 4, dim=0)

    frames = decode(latents(), run, chunk, lambda *step: told.append(step), time_factor=4)
    assert sizes[0] == 1 and sum(sizes) == FRAMES and set(sizes[1:-1]) <= {chunk}
    assert torch.equal(frames, torch.cat([whole()[:1], whole()[1:].repeat_interleave(4, dim=0)]))
    assert told[0] == (1, 1 + 6 * 4) and told[-1] == (1 + 6 * 4, 1 + 6 * 4)
