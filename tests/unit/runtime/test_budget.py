"""What a clip needs is known before it is made; what does not fit is refused with what would, or others give way."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import BudgetError
from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.conditioning import MIN_SIDE
from i2v_tensorrt.pipeline.decode import scratch_bytes
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.latent_space import LatentSpace
from i2v_tensorrt.pipeline.models.model_networks import streamed_bytes
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.model import Wan21
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime import budget
from i2v_tensorrt.runtime.budget import TOLERANCE, Budget, largest
from i2v_tensorrt.runtime.clip import decode_clip, fitting_chunk
from i2v_tensorrt.runtime.clip_plan import engine_multiple, plan_clip
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.stages import REQUEST, decoded, encoded, engines_of, quiet, sampled
from ...helpers.toys import CPU

MIB = 1 << 20
WORDS = REQUEST.size.words


class Machine(LoadInPlace):
    """A host with so much memory."""

    def __init__(self, device_bytes: int, host_bytes: int) -> None:
        self.device_bytes, self.free_on_host_bytes = device_bytes, host_bytes

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        runner.load()
        return None

    def room_bytes(self) -> int:
        return self.device_bytes

    def host_bytes(self) -> int:
        return self.free_on_host_bytes


@pytest.fixture
def machine() -> Machine:
    return Machine(1 << 40, 1 << 40)


@pytest.fixture
def engines(tiny_folder: Path, tmp_path: Path, machine: Machine) -> EngineSet:
    return engines_of(tiny_folder, tmp_path, machine)


@pytest.mark.parametrize("stage", ["encode", "sample", "decode"])
def test_what_does_not_fit_is_refused_before_anything_runs(
    engines: EngineSet, machine: Machine, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    conditioning = encoded(engines)
    size = replace(conditioning, width=1024, height=512, num_frames=16)
    monkeypatch.setattr(EagerRunner, "_run", lambda *_: pytest.fail("a network ran"))
    machine.device_bytes = 300 * MIB
    with pytest.raises(BudgetError) as caught:
        if stage == "encode":
            encoded(engines, replace(REQUEST, width=1024, height=512, num_frames=16))
        elif stage == "sample":
            sampled(engines, size)
        else:
            decoded(engines, torch.zeros(16, 4, 64, 128))
    told = str(caught.value)
    assert told.startswith(("Denoising 1024x512 with 16 frames needs about ", "Decoding 1024x512 with 16 frames needs"))
    assert ", found 0.29 GiB: " in told
    assert told.endswith(" would fit.")
    assert "\n" not in told


def test_what_the_host_cannot_hold_or_no_size_of_its_shape_saves_is_refused(
    engines: EngineSet, machine: Machine
) -> None:
    machine.free_on_host_bytes = 10 * MIB
    with pytest.raises(BudgetError, match="Holding the frames of 512x512 with 16 frames needs about 0.05 GiB"):
        decoded(engines, torch.zeros(16, 4, 64, 64))
    machine.device_bytes = MIB
    with pytest.raises(BudgetError, match="close other programs, or choose less.$"):
        encoded(engines, shrink=True)


def least(need: Budget, size: ClipSize) -> int:
    """The smallest room that a clip is not refused: of what is estimated it may need less."""
    return need.known_bytes + int((need.cost(size) - need.known_bytes) / TOLERANCE) + 1


def test_weights_are_no_estimate() -> None:
    """26.6 GiB of weights were allowed on a card of 24."""
    Budget("Denoising", lambda size: 1 << 60, None).check(ClipSize(2048, 2048, 64))  # where nobody knows the memory
    size, heavy = ClipSize(64, 64, 1), replace(LINEAR, known_bytes=1000)
    assert replace(heavy, room=1000 + 64 * 64).allows(size)
    assert replace(heavy, room=1000 + int(64 * 64 / TOLERANCE) + 1).allows(size)
    assert not replace(heavy, room=1000 + int(64 * 64 / TOLERANCE) - 1).allows(size)
    assert not replace(heavy, room=999, cost=lambda size: 1000).allows(size)


def test_an_encoder_that_the_memory_cannot_hold_is_refused_unless_nobody_needs_it(
    engines: EngineSet, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, size_bytes = ConditioningCache(None), type(engines.model).size_bytes
    kept = encoded(engines, cache=cache)

    def huge(model: VideoModel, name: str, *others: Any) -> int:
        return 2 << 40 if name == "text_encoder" else size_bytes(model, name, *others)

    monkeypatch.setattr(type(engines.model), "size_bytes", huge)
    with pytest.raises(BudgetError) as caught:
        encoded(engines)
    assert str(caught.value).startswith(f"Encoding for {WORDS} needs about 2048.")
    assert str(caught.value).endswith(" of memory, found 1024.00 GiB: close other programs, or choose less.")
    assert encoded(engines, cache=cache).size == kept.size


def test_after_memory_ran_out_the_advice_leaves_out_what_may_be_too_large_too() -> None:
    size, need = ClipSize(1024, 768, 16), replace(LINEAR, known_bytes=1000)
    told = replace(need, room=need.cost(size)).sentence(size, ran_out=True)
    frames = next(n for n in range(15, 0, -1) if need.cost(size._replace(num_frames=n)) * TOLERANCE <= need.cost(size))
    assert "needs more than 0.01 GiB of memory, found 0.01 GiB: " in told
    assert f": {frames} of these frames" in told
    fixed = replace(need, cost=lambda size: 1000, room=5000)
    assert fixed.sentence(size, ran_out=True).endswith(": close other programs, or choose less.")


def test_the_least_that_a_clip_needs_is_asked_for(engines: EngineSet, machine: Machine) -> None:
    """Encoding does not know yet whether guidance will double the batch, and how many frames are decoded at once."""
    size = REQUEST.size
    needs = [budget.denoising(engines, guided=False), *budget.decoding(engines)[:1]]
    machine.device_bytes = max(least(need, size) for need in needs)
    conditioning = encoded(engines)
    decoded(engines, torch.zeros(3, 4, 9, 8), 3)
    machine.device_bytes -= 10
    with pytest.raises(BudgetError):
        encoded(engines)
    machine.device_bytes = least(budget.denoising(engines, guided=True), size) - 10
    with pytest.raises(BudgetError, match="Denoising"):
        sampled(engines, conditioning)


LINEAR = Budget("Denoising", lambda size: 1000 + size.width * size.height * size.num_frames, 0)


@pytest.mark.parametrize("room", [64 * 64, 100_000, 1_000_000, 5_000_000, 11_000_000])
def test_the_advice_is_the_largest_that_fits(room: int) -> None:
    size = ClipSize(1024, 768, 16)
    told = replace(LINEAR, room=room).sentence(size)
    cost = LINEAR.cost
    frames = [n for n in range(1, 16) if cost(size._replace(num_frames=n)) <= room]
    assert (f": {frames[-1]} of these frames" in told) if frames else ("of these frames" not in told)
    sides = [w for w in range(64, 1024, 8) if cost(ClipSize(w, max(round(768 * w / 1024 / 8) * 8, 64), 16)) <= room]
    assert (f"{sides[-1]}x" in told) if sides else told.endswith(": close other programs, or choose less.")


def test_a_family_of_one_length_is_advised_on_sides_alone() -> None:
    space = LatentSpace(min_frames=16, max_frames=16, side_multiple=64)

    def cost(size: ClipSize) -> int:
        assert space.violation("The family", *size) is None
        return LINEAR.cost(size)

    need = Budget("Denoising", cost, 5_000_000, space)
    assert need.sentence(ClipSize(1024, 576, 16)).endswith(": 704x384 with 16 frames would fit.")
    assert largest([need], ClipSize(1024, 576, 16), 64) == ClipSize(768, 448, 16)


def test_what_is_advised_is_a_size_that_a_request_may_have() -> None:
    for width, height in itertools.product((64, 72, 512, 2048), (64, 520, 2040)):
        for room in (100_000, 10_000_000):
            told = replace(LINEAR, room=room).sentence(ClipSize(width, height, 8)).split(": ")[1]
            sides = [int(side) for part in told.split() if "x" in part for side in part.split("x") if side.isdigit()]
            assert all(64 <= side <= 2048 and side % 8 == 0 for side in sides)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: no"),
        MemoryError(),
        RuntimeError("another"),
    ],
    ids=["gpu", "cpu", "python", "another"],
)
def test_memory_that_runs_out_in_the_middle_is_explained_and_nothing_else_is(
    engines: EngineSet, error: Exception
) -> None:
    def run_out(done: int, total: int, latents: torch.Tensor) -> None:
        raise error

    with pytest.raises((BudgetError, torch.cuda.OutOfMemoryError, RuntimeError)) as caught:
        sampled(engines, encoded(engines), on_step=run_out)
    if str(error) == "another":
        assert caught.value is error
        return
    assert str(caught.value).startswith(f"Denoising {WORDS} needs more than ")
    assert str(caught.value).endswith(" would fit."), "what the allocator has to say is for the log"
    assert isinstance(caught.value, torch.cuda.OutOfMemoryError) == isinstance(error, torch.cuda.OutOfMemoryError)


def test_who_had_to_go_is_told(engines: EngineSet, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    hold = Machine.hold
    monkeypatch.setattr(machine, "hold", lambda runner, scratch: hold(machine, runner, scratch) or "Made room.")
    conditioning = encoded(engines)
    engines.take_notes()
    sampled(engines, conditioning)
    assert engines.take_notes() == ["Made room."]


SPACES = {"pictures": (LatentSpace(), 8), "unet": (LatentSpace(), 64), "wan": (Wan21.latent, 16)}


@pytest.mark.parametrize(("space", "multiple"), SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("share", [0.001, 0.02, 0.1, 0.3, 0.62, 0.99])
@pytest.mark.parametrize(("width", "height", "frames"), [(1024, 768, 17), (512, 960, 5), (704, 1280, 1)])
def test_the_largest_clip_that_fits_keeps_its_frames_and_shape_as_long_as_it_can(
    space: LatentSpace, multiple: int, share: float, width: int, height: int, frames: int
) -> None:
    size, pixels = ClipSize(width, height, frames), width * height * frames
    budgets = [
        Budget("One", lambda each: each.width * each.height * each.num_frames, int(pixels * share / TOLERANCE), space),
        Budget("Another", lambda each: each.width * each.height, int(width * height * share**0.5), space),
        Budget("None", lambda each: 1 << 60, None, space),
    ]
    least = ClipSize(MIN_SIDE, MIN_SIDE, 1)
    if not all(budget.allows(least) for budget in budgets):
        with pytest.raises(BudgetError, match="^One|^Another"):
            largest(budgets, size, multiple)
        return
    found = largest(budgets, size, multiple)
    assert all(budget.allows(found) for budget in budgets)
    assert space.violation("a model", multiple, multiple, found.num_frames) is None
    scale = max(found.width, found.height) / max(width, height)
    for side, asked in ((found.width, width), (found.height, height)):
        assert side == MIN_SIDE or abs(side - asked * scale) <= multiple
    half = ClipSize(round(width / 2 + multiple), round(height / 2 + multiple), frames)
    if all(budget.allows(half) for budget in budgets):
        assert found.num_frames == frames
    larger = found._replace(width=found.width + 2 * multiple, height=found.height + 2 * multiple)
    assert larger.width > width or not all(budget.allows(larger) for budget in budgets)


def test_a_clip_shrinks_to_what_is_there_and_what_fits_stays_as_it_is() -> None:
    """One side may be the least long before the other; and one that no engine takes goes to one that it does."""
    room = Budget("One", lambda each: each.width * each.height * each.num_frames, 64 * 64 * 16)
    assert largest([room], ClipSize(80, 2048, 16), 8).width == 64
    room = Budget("One", lambda each: each.width * each.height, 500 * 500)
    assert largest([room], ClipSize(1000, 1000, 2), 64) == ClipSize(512, 512, 2)
    size = ClipSize(1000, 8, 3)  # whatever else is wrong with it
    assert largest([Budget("One", lambda _: 100, 100)], size, 64) is size


def test_a_clip_shrinks_to_what_fits_with_guidance_and_says_so(engines: EngineSet, machine: Machine) -> None:
    asked, size = replace(REQUEST, width=512, height=256, num_frames=8), ClipSize(512, 256, 8)
    needs = [budget.denoising(engines, guided=True), *budget.decoding(engines)]
    machine.device_bytes = int(needs[0].cost(size) * 0.7 / TOLERANCE)
    needs = [budget.denoising(engines, guided=True), *budget.decoding(engines)]
    assert not needs[0].allows(size)
    cache = ConditioningCache(None)
    found = encoded(engines, asked, cache, shrink=True)
    expected = largest(needs, size, engine_multiple(engines.model))
    assert found.size == expected != size
    assert found.notes[0] == f"Made as {expected.words}, for 512x256 with 8 frames does not fit the memory."
    frames = decoded(engines, sampled(engines, found))
    assert frames.shape == (expected.num_frames, expected.height, expected.width, 3)
    # What is kept of it is what was made.
    again = encoded(engines, replace(asked, **expected._asdict()), cache)
    assert again.place != "encoded"
    machine.device_bytes = 1 << 40
    whole = encoded(engines, asked, cache, shrink=True)
    assert whole.size == size
    assert [note for each in (again, whole) for note in each.notes if note.startswith("Made as")] == []


LATENTS = torch.zeros(8, 4, 8, 8)
SIZE = ClipSize(64, 64, 8)


class Short(LoadInPlace):
    """A host whose memory has room for some bytes, and who can let go of caches, then of encoders, once each."""

    def __init__(self, spare_bytes: int) -> None:
        self.spare = spare_bytes
        self.held = ["caches", "encoders"]
        self.asked: list[tuple[int, bool]] = []

    def spare_bytes(self) -> int:
        return self.spare

    def free_memory(self, needed_bytes: int, *, encoders: bool) -> str | None:
        self.asked.append((needed_bytes, encoders))
        gone = [name for name in self.held if encoders or name != "encoders"]
        self.held = [name for name in self.held if name not in gone]
        return f"Let go of {' and '.join(gone)}." if gone else None


@pytest.fixture
def short(tiny_folder: Path, tmp_path: Path) -> tuple[EngineSet, Short]:
    memory_manager = Short(scratch_bytes(64, 64, 3))
    return engines_of(tiny_folder, tmp_path, memory_manager), memory_manager


def test_the_pack_gives_way_before_chunks_become_smaller(
    short: tuple[EngineSet, Short], tiny_folder: Path, tmp_path: Path
) -> None:
    unknown = engines_of(tiny_folder, tmp_path)
    assert fitting_chunk(plan_clip(unknown, SIZE)) == 8, "where nobody knows the memory"
    engines, memory_manager = short
    assert fitting_chunk(plan_clip(engines, SIZE)) == 3
    assert memory_manager.asked == [(scratch_bytes(64, 64, 8), False)]
    assert engines.take_notes() == ["Let go of caches."]


def test_a_shortage_costs_caches_then_the_chunk_then_encoders(
    short: tuple[EngineSet, Short], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, memory_manager = short
    plan, sizes, run = plan_clip(engines, SIZE), list[int](), EagerRunner._run
    whole = decode_clip(plan, LATENTS, 8, quiet)

    def cramped(runner: EagerRunner, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        sizes.append(len(inputs["latents"]))
        if memory_manager.held or len(inputs["latents"]) > 2:
            raise torch.cuda.OutOfMemoryError("injected")
        return run(runner, inputs)

    monkeypatch.setattr(EagerRunner, "_run", cramped)
    assert torch.allclose(decode_clip(plan, LATENTS, 8, quiet), whole, atol=1e-5)
    assert sizes == [8, 8, 4, 2, 1, *[1] * 8]
    assert engines.take_notes() == [
        "Let go of caches.",
        "Memory ran out with 8 frames of latents at once: decoded in smaller chunks.",
        "Memory ran out with 4 frames of latents at once: decoded in smaller chunks.",
        "Memory ran out with 2 frames of latents at once: decoded in smaller chunks.",
        "Let go of encoders.",
    ]


def test_a_denoiser_whose_blocks_can_be_brought_needs_room_for_two_of_them(tmp_path: Path) -> None:
    model = open_model(write_tiny_wan(tmp_path / "wan", "wan21", TinyWanSizes(layers=9)))
    stored = EngineStore(tmp_path / "engines")
    found = {
        backend: budget.denoising(
            EngineSet(model, stored, EnginePolicy(backend=backend, precision="fp32"), CPU), guided=False
        ).known_bytes
        for backend in ("eager", "inductor")
    }
    nine, two = model.size_bytes("core", "fp32"), streamed_bytes(model, "core", "fp32")
    assert found == {"eager": nine, "inductor": two}
    block_bytes = sum(x.nbytes for x in model.load("core", "fp32").get_submodule("blocks.0").parameters())
    assert nine - two == 7 * block_bytes
    assert streamed_bytes(model, "image_encoder", "fp32") == model.size_bytes("image_encoder", "fp32")
