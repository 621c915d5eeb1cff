"""Workers as Ray actors, one a GPU of every node. No other file of the pack imports Ray.

Ray places the actors and tells what became of them; it repeats nothing by itself (no restarts, no retries), for the
dispatcher alone knows which losses count against a clip. Actors and not Ray Data: its pool repeats a clip that ends its
worker for ever, or, with a limit, gives no row for it, and it would bring pandas and pyarrow along, 400 MB.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from .clip_job import ClipJob, Outcome
from .crew import Answer, Slot
from .maker import WorkerSpec

ACCELERATOR = "accelerator_type:"
STORE_BYTES = 100 << 20
"""Of Ray's object store: clips go through the disk, never through it."""
CLOSE_S = 30.0
"""How long workers may take to end what they have started."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Ray sends nothing to its makers, and leaves the environment as it is."""


@dataclass(frozen=True)
class RayOptions:
    """Where Ray is, and what a worker takes.

    Args:
        address: `auto` for the cluster of this machine, an address, or None for a Ray of this machine alone.
        gpus_each: GPUs of a worker where the cluster has GPUs.
        cpus_each: CPU cores of a worker where it has none.
    """

    address: str | None = None
    gpus_each: int = 1
    cpus_each: int = 2


class RayCrew:
    """A worker in each place that the cluster has for one; the pack lies in `root` on every node."""

    def __init__(self, spec: WorkerSpec, root: Path, options: RayOptions) -> None:
        self._ray = _connected(options)
        self._spec, self._root, self._options = spec.as_text(), str(root), options
        self._actor_class = self._ray.remote(actor_class())
        self._actors: dict[Slot, Any] = {}
        self._jobs: dict[Any, Slot] = {}

    def slots(self) -> Sequence[Slot]:
        """See `Crew`."""
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        has_gpus = any(node["Resources"].get("GPU") for node in nodes)
        return [slot for node in nodes for slot in slots_of(node, has_gpus, self._options)]

    def start(self, slot: Slot) -> None:
        """See `Crew`."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        is_gpu = slot.kind != "cpu"
        self._actors[slot] = self._actor_class.options(
            num_gpus=self._options.gpus_each if is_gpu else 0,
            num_cpus=0 if is_gpu else self._options.cpus_each,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id=slot.node, soft=False),
        ).remote(self._root, self._spec, slot.name)

    def submit(self, slot: Slot, job: ClipJob) -> None:
        """See `Crew`."""
        self._jobs[self._actors[slot].make.remote(job.as_text())] = slot

    def wait(self, timeout_s: float) -> list[Answer]:
        """See `Crew`."""
        if not self._jobs:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(list(self._jobs), num_returns=1, timeout=timeout_s)
        if ready:
            ready, _ = self._ray.wait(list(self._jobs), num_returns=len(self._jobs), timeout=0)
        return [self._answer(self._jobs.pop(reference), reference) for reference in ready]

    def stop(self, slot: Slot) -> None:
        """See `Crew`."""
        actor = self._actors.pop(slot, None)
        self._jobs = {reference: place for reference, place in self._jobs.items() if place != slot}
        if actor is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)

    def close(self) -> None:
        """See `Crew`; workers that have no job end their ComfyUI by themselves, the others are killed with it."""
        busy = set(self._jobs.values())
        ending = [actor.close.remote() for slot, actor in self._actors.items() if slot not in busy]
        with suppress(self._ray.exceptions.RayError):
            self._ray.wait(ending, num_returns=len(ending), timeout=CLOSE_S) if ending else None
        for slot in list(self._actors):
            self.stop(slot)
        self._ray.shutdown()

    def _answer(self, slot: Slot, reference: Any) -> Answer:
        try:
            return Answer(slot, Outcome.from_text(self._ray.get(reference)))
        except self._ray.exceptions.RayError as error:
            return Answer(slot, None, str(error).strip().splitlines()[0])


def slots_of(node: Mapping[str, Any], has_gpus: bool, options: RayOptions) -> list[Slot]:
    """The places for workers on a node, as `ray.nodes` describes it; in a cluster with GPUs only those count."""
    resources, node_id, host = node["Resources"], node["NodeID"], node.get("NodeManagerHostname", "")
    if not has_gpus:
        count = int(resources.get("CPU", 0)) // options.cpus_each
        return [Slot(node_id, number, host=host) for number in range(count)]
    kinds = sorted(name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR))
    count = int(resources.get("GPU", 0)) // options.gpus_each
    return [Slot(node_id, number, kinds[0] if kinds else "gpu", host) for number in range(count)]


def _connected(options: RayOptions) -> Any:
    """Ray, as a module that has joined the cluster; raises InputError without Ray or without the cluster."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise InputError(
            'Expected the package ray, found none: python -m pip install "ray>=2.55", with the Python of .venv.'
        ) from error
    more: dict[str, Any] = {"address": options.address} if options.address else {"address": "local"}
    if not options.address:
        more |= {"object_store_memory": STORE_BYTES, "include_dashboard": False}
    where = options.address or "this machine"
    try:
        with _undisturbed() as signals:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
        raise InputError(f"Expected a Ray cluster at {where}, found none: {error}") from error
    if signals:
        ray.shutdown()
        raise KeyboardInterrupt
    return ray


@contextmanager
def _undisturbed() -> Iterator[list[int]]:
    """Yields a list of the signals that come meanwhile, and keeps Ray's own handlers out afterwards.

    Ctrl-C in the middle of Ray's start ends the process with a segmentation fault; Ray answers SIGTERM with a trace.
    """
    signals: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, _: signals.append(number))
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def actor_class() -> Any:
    """A class that travels by value, for a node's Python finds the pack only once `run.py` has shown it where."""

    class Actor:
        def __init__(self, root: str, spec: str, name: str) -> None:
            import runpy

            self.error, self.name = "", name
            try:
                runpy.run_path(f"{root}/run.py", run_name="i2v_tensorrt_run")
                from i2v_tensorrt.remote.fleet.maker import WorkerSpec  # type: ignore[import-not-found]
                from i2v_tensorrt.remote.fleet.worker import Worker  # type: ignore[import-not-found]

                self.worker = Worker(WorkerSpec.from_text(spec), name)
            except Exception as error:
                self.error = f"The pack should be in {root} on every node: {type(error).__name__}: {error}"

        def make(self, text: str) -> str:
            import json

            if self.error:
                return json.dumps({"verdict": "broken", "worker": self.name, "error": self.error, "files": []})
            return self.worker.make_text(text)

        def close(self) -> None:
            if not self.error:
                self.worker.close()

    return Actor
