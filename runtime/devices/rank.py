"""What the process of one device does: it has a part of a clip's tokens, and answers its host's messages.

The first message is a `Start`. Then come `{"load": component, "sizes": …}`, and `{"call": component}` with the
denoiser's inputs, without those that are as they were at the last call. Each is answered by a message; that of a call
has the prediction in the first process. An error ends the process, for the others then wait for it in vain.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ...common.errors import EngineError
from ...common.out_of_memory import is_out_of_memory
from ...common.tensor_pipe import Message, read_message, write_message
from ...common.vector_math import settle_vector_math
from ...engine_builder.backends.base import in_a_line
from ...engine_builder.store.store import EngineStore
from ...pipeline.models.checkpoints.file_digests import TABLE
from ...pipeline.models.registry import open_model
from ...pipeline.models.wan.sliced import Ranks, among
from ...pipeline.request import ClipSize
from ..engines.engine_set import Engines
from ..engines.policy import EnginePolicy
from .sliced_networks import SlicedNetworks

MEMORY = "memory"
"""The kind of an answer that says that memory ran out."""


@dataclass(frozen=True)
class Start:
    """What a process is told at first.

    `rank` of `count` on `device`; `meeting` is a file through which the processes find each other, `backend` theirs
    of torch.distributed; the model is in `folder` with `adapters`, as `registry.open_model` takes them.
    """

    rank: int
    count: int
    device: str
    backend: str
    meeting: str
    timeout_s: float
    folder: str
    adapters: list[Any]
    store: str
    policy: dict[str, Any]
    digests: dict[str, str]
    """The files' digests, as the host's `file_digests.TABLE` has them."""


def serve(made: Callable[[Start], Rank] | None = None) -> None:
    """Answers on standard output, by the process that is `made`; whatever libraries print goes to standard error."""
    settle_vector_math()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    messages: queue.Queue[Message] = queue.Queue()
    threading.Thread(target=_hear, args=(sys.stdin.buffer, messages), daemon=True).start()
    try:
        rank = (made or Rank)(Start(**messages.get()[0]))
        write_message(answers, {})
        while True:
            data, tensors = messages.get()
            write_message(answers, *rank.answer(data, tensors))
    except BaseException as error:
        traceback.print_exc()
        kind = MEMORY if is_out_of_memory(error) else ""
        text = in_a_line(error) if isinstance(error, Exception) else "it was interrupted"
        write_message(answers, {"error": text, "kind": kind})
        os._exit(1)  # at once: an orderly end would wait for the other processes


def _hear(stream: BinaryIO, messages: queue.Queue[Message]) -> None:
    """Reads messages; at the end of the input the process ends, since no host waits for an answer."""
    try:
        while (message := read_message(stream)) is not None:
            messages.put(message)
    except BaseException:  # such as a MemoryError: the host hears that the process has ended
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


class Rank:
    """One of several processes, with the denoisers of its model."""

    def __init__(self, start: Start) -> None:
        import torch.distributed as dist

        self._device = torch.device(start.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        else:
            torch.set_num_threads(max((os.cpu_count() or 1) // start.count, 1))
        dist.init_process_group(
            start.backend,
            init_method=Path(start.meeting).as_uri(),
            rank=start.rank,
            world_size=start.count,
            timeout=timedelta(seconds=start.timeout_s),
        )
        self._ranks = Ranks(start.rank, start.count, _gather)
        self._check()
        TABLE.learn(start.digests)
        model = open_model(Path(start.folder), [(path, strength, names) for path, strength, names in start.adapters])
        policy = {**start.policy, "presets": tuple(ClipSize(*each) for each in start.policy["presets"])}
        self._engines = Engines(
            SlicedNetworks.of(model), EngineStore(Path(start.store)), EnginePolicy(**policy), self._device
        )
        self._inputs: dict[str, torch.Tensor] = {}

    def answer(self, data: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Message:
        """The answer to a message: words, and tensors in host memory."""
        if "load" in data:
            runner = self._engines.runner(data["load"], data["sizes"])
            return {"backend": self._engines.describe(data["load"]), "bytes": runner.memory_bytes}, {}
        self._inputs.update(tensors)
        inputs = {name: tensor.to(self._device) for name, tensor in self._inputs.items()}
        with among(self._ranks):
            outputs = self._engines.run(data["call"], inputs)
        if self._ranks.rank:
            return {}, {}
        return {}, {name: tensor.cpu().contiguous() for name, tensor in outputs.items()}

    def _check(self) -> None:
        """Raises EngineError where the processes' exchange gives something else than what they gave."""
        count = self._ranks.count
        found = self._ranks.gather(torch.full((4,), self._ranks.rank, dtype=torch.float32, device=self._device))
        wanted = torch.arange(count, dtype=torch.float32)[:, None].expand(count, 4)
        if not torch.equal(found.cpu(), wanted):
            raise EngineError(f"Expected the numbers of {count} processes from their exchange, found {found.tolist()}")


def _gather(x: torch.Tensor) -> torch.Tensor:
    import torch.distributed as dist

    count = dist.get_world_size()
    found = x.new_empty(count * x.numel())
    dist.all_gather_into_tensor(found, x.reshape(-1))
    return found.reshape(count, *x.shape)
