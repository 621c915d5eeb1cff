"""A server that is never left alone: prompts one after another, with interruptions and frees among them.

Two models of the pack in many sizes, and one of the core's behind I2V Compile Model. On a GPU the test needs the card
for itself, for its memory is counted as a whole:
`pytest -m torture -k "without_end and 300" -o log_cli=true --log-cli-level=INFO tests/live/test_long_run.py`.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.messages import outcome
from i2v_tensorrt.remote.comfyui.server import ComfyHost, ComfyServer, start_server
from i2v_tensorrt.tests.helpers.counts import Evidence, counted, note
from i2v_tensorrt.tests.live import test_compile_model as core
from i2v_tensorrt.tests.live.answers import file_names, run
from i2v_tensorrt.tests.live.conftest import filled_base
from i2v_tensorrt.tests.live.graphs import Prompt, changed, clip, gradient, node, png
from i2v_tensorrt.tests.live.ids import CHECKPOINT, CONDITIONING, SAMPLER, SAVE, SVD
from i2v_tensorrt.tests.live.test_families import small
from i2v_tensorrt.tests.torture.test_endurance import slope_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the server's handles are counted on Linux")

EVERY = 10
"""Figures are taken after so many prompts, with nothing running and nothing held."""
SLOPE_LIMIT_BYTES = 256 << 10
SETTLING_BYTES = 150 << 20
"""What a server takes in its first prompts: libraries, threads, the allocator's arenas, ComfyUI's history."""
VRAM_BYTES = 64 << 20
"""By how much the GPU's memory in use may grow once warm.

Over the 225 prompts that follow 75 it is 290 KiB for each, where a clip of the tiny models holds 12 MB of weights: six
models that are not let go of would show.
"""
SIDES = (64, 96, 128)
FEW = 20
"""Of so few prompts none compiles a model of the core's, which takes a minute on a CPU."""
CORE_MODEL = "tiny_wan22_a14b"


@pytest.fixture
def server(
    host: ComfyHost, tiny_folder: Path, tiny_svd_folder: Path, server_arguments: list[str], tmp_path: Path, count: int
) -> Iterator[ComfyServer]:
    """A server of its own, whose figures nobody else disturbs."""
    base = filled_base(tmp_path / "base", {CHECKPOINT: tiny_folder, SVD: tiny_svd_folder}, "probe_nodes.py")
    if count > FEW:
        core.write_core_models(host, base)
    with start_server(host, base, server_arguments) as running:
        yield running


class Figures:
    """What the server holds, as the system counts it, after each `EVERY` prompts; `vram` is the whole GPU's, bytes."""

    def __init__(self, server: ComfyServer) -> None:
        import psutil

        self._server, self._process = server, psutil.Process(server.process.pid)
        self.memory, self.handles, self.threads, self.children, self.vram = ([] for _ in range(5))
        self.elapsed_s: list[float] = []
        self._then = time.monotonic()

    def take(self) -> None:
        self.memory.append(self._process.memory_info().rss)
        self.handles.append(self._process.num_fds())
        self.threads.append(self._process.num_threads())
        self.children.append(len(self._process.children(recursive=True)))
        self.vram.append(settled_vram())
        now = time.monotonic()
        self.elapsed_s.append(now - self._then)
        self._then = now
        note("soak", {name: value for name, value in vars(self).items() if isinstance(value, list)})

    def temporary(self) -> set[str]:
        """Half-written files anywhere in the server's folders."""
        return {name for name in file_names(self._server.base_directory) if name.endswith((".part", ".tmp"))}


def settled_vram() -> int:
    """Bytes in use on the GPU, once they fall no more; 0 without one."""
    if not torch.cuda.is_available():
        return 0
    then, now = sys.maxsize, used_vram()
    while now < then:
        time.sleep(0.25)
        then, now = now, used_vram()
    return now


def used_vram() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def size_of(draw: random.Random) -> dict[str, int]:
    return {"width": draw.choice(SIDES), "height": draw.choice(SIDES), "num_frames": draw.choice([2, 3, 4])}


def saved(number: int, draw: random.Random) -> dict[str, str]:
    return {"format": draw.choice(["mp4-h264", "webp", "gif"]), "filename_prefix": f"long/{number % 4}"}


def i2vgen_prompt(picture: str, number: int, draw: random.Random) -> Prompt:
    return clip(
        picture,
        {CONDITIONING: {"prompt": f"boat {number % 25}", **size_of(draw)}},
        {SAMPLER: {"seed": number, "steps": draw.choice([1, 2, 6]), "reuse_result": number % 3 == 0}},
        {SAVE: saved(number, draw)},
    )


def svd_prompt(picture: str, number: int, draw: random.Random) -> Prompt:
    steps = {"seed": number, "steps": draw.choice([1, 2, 6])}
    return small("svd", picture, {CONDITIONING: size_of(draw), SAMPLER: steps, SAVE: saved(number, draw)})


def core_prompt(picture: str, number: int, draw: random.Random) -> Prompt:
    """The core's own sampler over a compiled model of its own, which is compiled once."""
    prompt = core.wan(CORE_MODEL, number)
    for name in (core.PLAIN_SAMPLER, core.PLAIN_FRAMES, core.DIFFERENCE):
        del prompt[name]
    prompt["60"] = node("PreviewImage", images=[core.FRAMES, 0])
    return changed(prompt, {core.SAMPLER: {"steps": draw.choice([2, 3, 6])}})


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
        while chance < 0.35 and prompt_id in client.queued()[1]:
            time.sleep(0.02)  # its turn has not come
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


@counted(FEW, 300, 1000, slow=True)
def test_a_queue_without_end_leaves_nothing(server: ComfyServer, count: int, evidence: Evidence) -> None:
    client, draw, ends, figures = ComfyClient(server.url), random.Random(count), Counter[str](), Figures(server)
    picture = client.upload_image(png(gradient()), "gradient.png")
    makers = [i2vgen_prompt, svd_prompt] + [core_prompt] * (count > FEW)
    for make in makers:  # what is made once is made: libraries, files, an engine
        run(client, make(picture, count, draw))
    for start in range(0, count, EVERY):
        ends += run_some(client, [draw.choice(makers)(picture, start + n, draw) for n in range(EVERY)], draw)
        idle(client)
        figures.take()
    assert sum(ends.values()) == count
    run(client, clip(picture))
    warm = len(figures.memory) // 4
    slope = slope_of(figures.memory[warm:]) / EVERY
    assert slope * (count - EVERY * warm) < SETTLING_BYTES + SLOPE_LIMIT_BYTES * count
    assert figures.handles[-1] <= max(figures.handles[: warm + 1]) + 2
    assert figures.threads[-1] <= max(figures.threads[: warm + 1]) + 2
    if count > FEW:  # the GPU is this test's own
        assert figures.vram[-1] <= max(figures.vram[: warm + 1]) + VRAM_BYTES
    assert figures.children[-1] == 0
    assert figures.temporary() == set()
    told = ", ".join(f"{number} {end}" for end, number in sorted(ends.items()))
    first, last = (sum(part) / len(part) / EVERY for part in halves(figures.elapsed_s))
    held = [f"{values[warm]} -> {values[-1]}" for values in (figures.handles, figures.threads)]
    told += f"; {slope / 1024:.0f} KiB a prompt, files {held[0]}, threads {held[1]}"
    if torch.cuda.is_available():
        told += f", VRAM {figures.vram[warm] >> 20} -> {figures.vram[-1] >> 20} MiB"
    told += f", {first:.2f} -> {last:.2f} s a prompt"
    evidence("prompts queued without end", count, told)


def halves(values: list[float]) -> tuple[list[float], list[float]]:
    middle = max(1, len(values) // 2)
    return values[:middle], values[middle:] or values[-1:]
