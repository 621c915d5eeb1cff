"""A server that is never left alone: prompts one after another, with interruptions and frees among them."""

from __future__ import annotations

import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.messages import outcome
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, link_pack, start_server
from i2v_tensorrt.tests.comfy.conftest import PACK
from i2v_tensorrt.tests.comfy.graphs import (
    CHECKPOINT,
    CONDITIONING,
    SAMPLER,
    SAVE,
    Prompt,
    clip,
    file_names,
    gradient,
    png,
)
from i2v_tensorrt.tests.counts import Evidence, counted
from i2v_tensorrt.tests.jobs.test_endurance import slope_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server's handles are counted on Linux")

EVERY = 10
"""Figures are taken after so many prompts, with nothing running and nothing held."""
SLOPE_LIMIT_BYTES = 256 << 10
SETTLING_BYTES = 150 << 20
"""What a server takes in its first prompts: libraries, threads, the allocator's arenas, ComfyUI's history."""


@pytest.fixture
def server(host: ComfyHost, tiny_folder: Path, server_arguments: list[str], tmp_path: Path) -> Iterator[ComfyServer]:
    """A server of its own, whose figures nobody else disturbs."""
    base = tmp_path / "base"
    link_pack(PACK, base)
    shutil.copytree(tiny_folder, base / "models" / "i2v" / CHECKPOINT)
    with start_server(host, base, server_arguments) as running:
        yield running


class Figures:
    """What the server holds, as the system counts it."""

    def __init__(self, server: ComfyServer) -> None:
        import psutil

        self._server, self._process = server, psutil.Process(server.process.pid)
        self.memory: list[int] = []
        self.handles: list[int] = []
        self.threads: list[int] = []
        self.children: list[int] = []
        self.elapsed_s: list[float] = []
        self._then = time.monotonic()

    def take(self) -> None:
        self.memory.append(self._process.memory_info().rss)
        self.handles.append(self._process.num_fds())
        self.threads.append(self._process.num_threads())
        self.children.append(len(self._process.children(recursive=True)))
        now = time.monotonic()
        self.elapsed_s.append(now - self._then)
        self._then = now

    def temporary(self) -> set[str]:
        """Half-written files anywhere in the server's folders."""
        return {name for name in file_names(self._server.base_directory) if name.endswith((".part", ".tmp"))}


def prompt_of(picture: str, number: int, draw: random.Random) -> Prompt:
    """A clip that differs from the last in what is asked for, so that every node runs now and then."""
    return clip(
        picture,
        {CONDITIONING: {"prompt": f"boat {number % 25}", "num_frames": draw.choice([2, 3, 4])}},
        {SAMPLER: {"seed": number, "steps": draw.choice([1, 2, 6]), "reuse_result": number % 3 == 0}},
        {SAVE: {"format": draw.choice(["mp4-h264", "webp", "gif"]), "filename_prefix": f"long/{number % 4}"}},
    )


def idle(client: ComfyClient) -> None:
    """Waits for the queue's end, and lets go of all that is held."""
    while any(client.queued()):
        time.sleep(0.02)
    client.free()
    time.sleep(0.5)


def run_some(client: ComfyClient, prompts: list[Prompt], draw: random.Random) -> Counter[str]:
    """Queues the prompts, interrupts some of them and frees memory in between; how they ended."""
    ids = [client.queue(prompt) for prompt in prompts]
    for prompt_id in ids:
        chance = draw.random()
        if chance < 0.2:
            time.sleep(draw.random() / 5)
            client.interrupt(prompt_id)
        elif chance < 0.35:
            client.free(unload_models=True, free_memory=draw.random() < 0.5)
    while any(client.queued()):
        time.sleep(0.02)
    ends = [outcome(client.history(prompt_id)) for prompt_id in ids]
    assert all(status in ("success", "interrupted") for status, _ in ends), ends
    return Counter(status for status, _ in ends)


@counted(20, 1000, slow=True)
def test_a_queue_without_end_leaves_nothing(server: ComfyServer, count: int, evidence: Evidence) -> None:
    client, draw, ends, figures = ComfyClient(server.url), random.Random(count), Counter[str](), Figures(server)
    picture = client.upload_image(png(gradient()), "gradient.png")
    for start in range(0, count, EVERY):
        ends += run_some(client, [prompt_of(picture, start + n, draw) for n in range(EVERY)], draw)
        idle(client)
        figures.take()
    assert sum(ends.values()) == count
    assert client.run(clip(picture)).status == "success"
    warm = len(figures.memory) // 4
    slope = slope_of(figures.memory[warm:]) / EVERY
    assert slope * (count - EVERY * warm) < SETTLING_BYTES + SLOPE_LIMIT_BYTES * count
    assert figures.handles[-1] <= max(figures.handles[: warm + 1]) + 2
    assert figures.threads[-1] <= max(figures.threads[: warm + 1]) + 2
    assert figures.children[-1] == 0
    assert figures.temporary() == set()
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
    first, last = (sum(part) / len(part) / EVERY for part in halves(figures.elapsed_s))
    held = [f"{values[warm]} -> {values[-1]}" for values in (figures.handles, figures.threads)]
    told += f"; {slope / 1024:.0f} KiB a prompt, files {held[0]}, threads {held[1]}"
    told += f", {first:.2f} -> {last:.2f} s a prompt"
    evidence("prompts queued without end", count, told)


def halves(values: list[float]) -> tuple[list[float], list[float]]:
    middle = max(1, len(values) // 2)
    return values[:middle], values[middle:] or values[-1:]
