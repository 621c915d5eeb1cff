"""Memory that a clip needs, computed before any allocation, and sizes that would fit in its place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..common.errors import BackendUnavailableError, BudgetError, I2VError
from ..common.out_of_memory import is_out_of_memory
from ..engine_builder.backends.eager import EagerBackend
from ..engine_builder.backends.registry import BACKENDS, choose_backend
from ..pipeline.conditioning import MIN_SIDE
from ..pipeline.models.latent_space import LatentSpace
from ..pipeline.models.model_networks import streamed_bytes
from ..pipeline.request import ClipSize
from .acceleration import cache_bytes
from .clip_sizes import clip_sizes
from .engines.engine_set import EngineSet

log = logging.getLogger(__name__)

TOLERANCE = 1.15
"""Factor by which an estimate may exceed the true need: no clip is refused that may need less, none advised that may
need more once memory did run out."""
_FRAME_CHANNELS, _FLOAT_BYTES = 3, 4


Cost = Callable[[ClipSize], int]
"""Bytes that a clip of a size takes."""


@dataclass(frozen=True)
class Budget:
    """One stage's need of a memory with `room` bytes (None: not known). `stage` begins a sentence.

    A size that would fit is looked for among the clips of a `space`.
    """

    stage: str
    cost: Cost
    room: int | None
    space: LatentSpace = field(default_factory=LatentSpace)
    known_bytes: int = 0
    """Part of the cost that is known and no estimate, such as weights."""

    def check(self, size: ClipSize) -> None:
        """Raises BudgetError, with sizes that would fit, when the clip needs far more memory than there is."""
        if not self.allows(size):
            raise BudgetError(self.sentence(size))

    def allows(self, size: ClipSize) -> bool:
        """Whether the clip needs no more than there may be."""
        estimated = self.cost(size) - self.known_bytes
        return self.room is None or self.known_bytes + estimated / TOLERANCE <= self.room

    def sentence(self, size: ClipSize, *, ran_out: bool = False) -> str:
        """Sentence on the clip's need, the memory found, and sizes that would fit, surely if memory `ran_out`."""
        cost, found = _gib(self.cost(size)), "" if self.room is None else f", found {_gib(self.room)}"
        room = self.cost(size) * 3 // 4 if self.room is None else self.room
        if ran_out:
            estimated = self.cost(size) - self.known_bytes
            room = min(room, self.cost(size) - 1) - int(estimated * (1 - 1 / TOLERANCE))
        needed = "more than" if ran_out else "about"
        return f"{self.stage} {size.words} needs {needed} {cost} of memory{found}: {self._advice(size, room)}."

    def _advice(self, size: ClipSize, room: int) -> str:
        counts = self.space.counts(size.num_frames - 1)
        fewer = next((count for count in counts if self._fits(size._replace(num_frames=count), room)), 0)
        smaller = next((each for each in _smaller(size, self.space.side_multiple) if self._fits(each, room)), None)
        found = [f"{fewer} of these frames"] if fewer else []
        found += [smaller.words] if smaller else []
        return f"{' or '.join(found)} would fit" if found else "close other programs, or choose less"

    def _fits(self, size: ClipSize, room: int) -> bool:
        return self.cost(size) <= room


def largest(budgets: Sequence[Budget], size: ClipSize, multiple: int) -> ClipSize:
    """The largest clip of about the same shape that all budgets allow: smaller frames first, then fewer of them.

    Sides other than those of `size` are multiples of `multiple` pixels; sides below half of the requested are taken
    only where fewer frames would not fit. Raises BudgetError where nothing fits.
    """
    if all(budget.allows(size) for budget in budgets):
        return size
    space = budgets[0].space
    counts = space.counts(size.num_frames)
    sizes = [size, *_smaller(size, multiple)]
    roomy = [each for each in sizes if 2 * max(each.width, each.height) >= max(size.width, size.height)]
    for group in (roomy, sizes):
        candidates = (each._replace(num_frames=count) for count in counts for each in group)
        found = next((each for each in candidates if all(budget.allows(each) for budget in budgets)), None)
        if found is not None:
            return found
    raise BudgetError(next(budget for budget in budgets if not budget.allows(size)).sentence(size))


def encoding(engines: EngineSet) -> Budget:
    """The encoder that takes the most; each runs alone."""
    model = engines.model
    others = {model.decoder_component, *model.denoisers}
    each = [
        _on_device("Encoding for", engines, name, chunk=1) for name in model.engine_components if name not in others
    ]
    known_bytes = max((budget.known_bytes for budget in each), default=0)
    return Budget(
        "Encoding for",
        lambda size: max((budget.cost(size) for budget in each), default=0),
        engines.memory_manager.room_bytes(),
        model.latent,
        known_bytes,
    )


def denoising(engines: EngineSet, *, guided: bool) -> Budget:
    """The denoiser at every step, and what the preset's accelerators hold between the steps.

    With a second device each has a batch of one branch; the accelerators' tensors are on the first.
    """
    acceleration, model, precision = engines.preset.acceleration, engines.model, engines.precision
    budget = _on_device("Denoising", engines, engines.model.denoiser, guided=guided and engines.second is None)
    if acceleration.is_exact:
        return budget
    twice_bytes = budget.known_bytes if acceleration.deep_interval > 1 and _holds_weights(engines) else 0

    def cost(size: ClipSize) -> int:
        held_bytes = cache_bytes(acceleration, model, size, precision, guided=guided)
        return budget.cost(size) + twice_bytes + held_bytes

    return replace(budget, cost=cost, known_bytes=budget.known_bytes + twice_bytes)


def second_device(engines: EngineSet, second: EngineSet) -> Budget:
    """One branch of a denoising step on the second device, with its own room."""
    return _on_device(f"One of two branches on {second.device} for", second, engines.model.denoiser)


def _holds_weights(engines: EngineSet) -> bool:
    """Whether the denoiser's engines hold a copy of its weights each."""
    try:
        return engines.policy.holds_weights(choose_backend(engines.policy.backend, engines.device))
    except I2VError:
        return False


def decoding(engines: EngineSet) -> list[Budget]:
    """As few frames at a time as the decoder takes on the device, and all of them on the host."""
    space = engines.model.latent
    host = Budget("Holding the frames of", _frames_bytes, engines.memory_manager.host_bytes(), space)
    return [_on_device("Decoding", engines, engines.model.decoder_component, chunk=space.least_chunk), host]


@contextmanager
def explained(budget: Budget, size: ClipSize) -> Iterator[None]:
    """Adds sizes that would fit to an out-of-memory error; on a GPU it keeps its type, by which ComfyUI knows it."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sentence = budget.sentence(size, ran_out=True)
        if type(error) is RuntimeError or isinstance(error, MemoryError):
            raise BudgetError(sentence) from error
        log.debug("memory ran out: %s", error)
        error.args = (sentence,)
        raise


def _on_device(
    stage: str, engines: EngineSet, component: str, *, guided: bool = False, chunk: int | None = None
) -> Budget:
    """A component's weights and the scratch memory of its call."""
    model, backend, precision = engines.model, _backend(engines, component), engines.catalog.run_precision(component)
    streams = backend in BACKENDS and BACKENDS[backend].builds_blocks
    rounding = engines.catalog.roundings(component) if streams else ()
    weights_bytes = (streamed_bytes if streams else type(model).size_bytes)(model, component, precision, rounding)

    def cost(size: ClipSize) -> int:
        sizes = clip_sizes(model, size.width, size.height, size.num_frames, guided=guided)
        sizes["chunk"] = sizes["chunk"] if chunk is None else chunk
        return weights_bytes + model.scratch_bytes(component, sizes, precision, backend)

    return Budget(stage, cost, engines.memory_manager.room_bytes(), model.latent, weights_bytes)


def _backend(engines: EngineSet, component: str) -> str:
    """The name of the backend that a component runs by, where it can."""
    try:
        backend = choose_backend(engines.policy.backend, engines.device)
        if backend.builds and engines.on_missing == EagerBackend.name and not engines.catalog.stored(component):
            return EagerBackend.name
    except BackendUnavailableError:
        return EagerBackend.name
    return backend.name


def _frames_bytes(size: ClipSize) -> int:
    return size.num_frames * size.width * size.height * _FRAME_CHANNELS * _FLOAT_BYTES


def _smaller(size: ClipSize, multiple: int) -> Iterator[ClipSize]:
    """Smaller sizes of about the same shape, the largest first; the longer side is a multiple of `multiple` pixels."""
    longest = max(size.width, size.height)
    for side in range((longest - 1) // multiple * multiple, MIN_SIDE - 1, -multiple):
        width, height = (
            max(round(each * side / longest / multiple) * multiple, MIN_SIDE) for each in (size.width, size.height)
        )
        yield ClipSize(width, height, size.num_frames)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
