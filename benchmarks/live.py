"""`run.py bench live`: a user's waiting times in a ComfyUI on the GPU at hand, started with its default flags.

A new ComfyUI makes the shipped workflow's clip, then I2VGen-XL's at its published size with random weights; their
engines come by themselves while the queue is empty. Figures go into one flat JSON file, beside those that other
commands have measured; a figure without a measurement is null.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.pack_paths import PACK
from ..common.workflow_names import QUICK_START, api_workflow
from ..engine_builder.store.store import EngineStore
from ..pipeline.dummies.full_size import write_full_checkpoint
from ..pipeline.models.checkpoints.file_digests import FRESH_S
from ..remote.comfyui.client import ComfyClient, RunResult
from ..remote.comfyui.server import ComfyServer, find_comfyui, link_pack, not_found_reason, start_server
from .figures import add_values
from .ladder.machine import describe_commit, describe_machine, describe_versions, now

log = logging.getLogger(__name__)

DESCRIPTION = "What a user waits for in a ComfyUI on the GPU at hand, started with its default flags."
RESULTS = Path(__file__).resolve().parent / "results" / "gpu" / "figures.json"
NAMES = (
    "live_passed", "live_failed", "quick_start_s", "full_size_first_video_s", "full_build_s", "bundled_build_s",
    "new_server_first_clip_s", "free_s", "reopen_s",
)  # fmt: skip
"""The figures that this project is held to; the file may have others."""
ARGUMENTS = ("--disable-api-nodes", "--database-url", "sqlite:///:memory:")
"""No outside host, no database file; no flag changes ComfyUI's computation or caches."""
FULL = "i2vgen-xl-random"
ENGINES = 5
MIB = 1 << 20
SETTLED_S = 1.5
LOADER, ENGINE_LOADER, CONDITIONING, SAMPLER = "2", "3", "4", "5"
FULL_SIZE = {
    LOADER: {"checkpoint": FULL},
    CONDITIONING: {"width": 512, "height": 512, "num_frames": 16, "fps": 16},
    SAMPLER: {"steps": 50, "guidance_scale": 9.0},
}
Prompt = dict[str, dict[str, Any]]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """A prompt that ran: the seconds from Run to its end, and the lines of its nodes."""

    elapsed_s: float
    lines: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Measures, and writes after each figure; 1 when there is no ComfyUI or no GPU."""
    parser = argparse.ArgumentParser(prog="run.py bench live", description=DESCRIPTION)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file of all figures")
    parser.add_argument("--work", type=Path, help="a folder for models and engines, kept; a temporary one otherwise")
    parser.add_argument("--build-minutes", type=float, default=5.0, help="how long to wait for the engines of a model")
    parser.add_argument("--full", action=argparse.BooleanOptionalAction, default=True, help="the published size too")
    options = parser.parse_args(argv)
    host = find_comfyui()
    if host is None or not torch.cuda.is_available():
        sys.stderr.write(f"{not_found_reason() if host is None else 'no CUDA GPU was found'}\n")
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        base = options.work or Path(temporary)
        base.mkdir(parents=True, exist_ok=True)
        link_pack(PACK, base)
        report = Report(options.out)
        report.note(date=now(), machine=describe_machine(torch.device("cuda", 0)), versions=describe_versions())
        report.note(commit=describe_commit(None))
        with start_server(host, base, ARGUMENTS) as server:
            _first_minutes(server, report, options)
        with start_server(host, base, ARGUMENTS) as server:
            name = "new_server_first_clip_s" if options.full else "new_server_first_bundled_clip_s"
            measured = run(server, prompt_of(*([FULL_SIZE] if options.full else []), seed=7))
            report.note(**{name: measured.elapsed_s, "new_server_lines": measured.lines})
    return 0


def _first_minutes(server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    """The quick start and the published size in a ComfyUI that has never run before."""
    first = run(server, prompt_of())
    report.note(quick_start_s=first.elapsed_s, quick_start_lines=first.lines)
    report.note(bundled_build_s=wait_for_engines(server, ENGINES, options.build_minutes), built=builds_of(server))
    report.note(bundled_hot_s=[run(server, prompt_of(seed=seed)).elapsed_s for seed in (2, 3)])
    if options.full:
        _published_size(server, report, options)
    report.note(free_s=seconds_to_free(server))
    prompt = opening(*([FULL_SIZE] if options.full else []))
    reopened = [_reopened(server, prompt) for _ in range(3)]
    report.note(reopen_s=reopened[0].elapsed_s, reopen_all_s=[each.elapsed_s for each in reopened])
    report.note(executed=[line for line in server.log().splitlines() if "Prompt executed" in line])


def _reopened(server: ComfyServer, prompt: Prompt) -> Measured:
    """Runs the prompt after the server has freed its models."""
    seconds_to_free(server)
    return run(server, prompt)


def _published_size(server: ComfyServer, report: Report, options: argparse.Namespace) -> None:
    started = time.monotonic()
    write_full_checkpoint(server.base_directory / "models" / "i2v" / FULL, torch.device("cuda", 0), 0)
    torch.cuda.empty_cache()
    report.note(written_s=round(time.monotonic() - started, 2))
    time.sleep(2 * FRESH_S)  # no digest is kept of a checkpoint that may still be changing
    first = run(server, prompt_of(FULL_SIZE))
    report.note(full_size_first_video_s=first.elapsed_s, full_size_lines=first.lines)
    report.note(full_build_s=wait_for_engines(server, 2 * ENGINES, options.build_minutes), built=builds_of(server))
    hot = [run(server, prompt_of(FULL_SIZE, seed=seed)) for seed in (2, 3)]
    report.note(full_size_hot_s=[each.elapsed_s for each in hot], full_size_hot_lines=hot[-1].lines)


class Report:
    """The file of figures, flat, and beside it one with lines of nodes and of the log; written anew after each."""

    def __init__(self, path: Path, names: Sequence[str] = NAMES, words: str = "live.json") -> None:
        """`names` are the figures that the file is to have, null until they are measured."""
        self._path, self._names = path, names
        self._words = path.with_name(words)

    def note(self, **found: Any) -> None:
        """Adds results to the files, and prints them: numbers to the figures, all else to the words."""
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
        figures = {name: value for name, value in rounded.items() if value is None or isinstance(value, int | float)}
        words = {name: value for name, value in rounded.items() if name not in figures}
        if figures:
            add_values(self._path, figures, self._names)
        if words:
            add_values(self._words, words)
        sys.stdout.write(json.dumps(rounded) + "\n")
        sys.stdout.flush()


def prompt_of(*changes: dict[str, dict[str, Any]], seed: int = 1) -> Prompt:
    """The shipped quick start with other inputs."""
    prompt: Prompt = json.loads(api_workflow(QUICK_START).read_text("utf-8"))
    for change in (*changes, {SAMPLER: {"seed": seed}}):
        for name, inputs in change.items():
            prompt[name]["inputs"].update(inputs)
    return prompt


def opening(*changes: dict[str, dict[str, Any]]) -> Prompt:
    """The prompt that opens the model and looks up its engines, and runs no clip."""
    whole = prompt_of(*changes)
    preview = {"class_type": "PreviewAny", "inputs": {"source": [ENGINE_LOADER, 0]}}
    return {LOADER: whole[LOADER], ENGINE_LOADER: whole[ENGINE_LOADER], "9": preview}


def run(server: ComfyServer, prompt: Prompt) -> Measured:
    """Runs a prompt to its end; raises RuntimeError for one that fails."""
    started = time.monotonic()
    result: RunResult = ComfyClient(server.url).run(prompt, timeout_s=900)
    elapsed_s = time.monotonic() - started
    if result.status != "success":
        raise RuntimeError(f"Expected a clip, found {result.status}: {result.error}; {server.log()[-2000:]}")
    return Measured(elapsed_s, lines_of(result))


def lines_of(result: RunResult) -> tuple[str, ...]:
    """Lines of text of the nodes."""
    texts = (text for output in result.outputs.values() for text in output.get("text", ()))
    return tuple(line for text in texts if isinstance(text, str) for line in text.splitlines())


def wait_for_engines(server: ComfyServer, count: int, minutes: float) -> float | None:
    """Seconds until `count` engines are in the server's store; None if they are not there in time."""
    store, started = EngineStore(server.base_directory / "models" / "i2v_engines"), time.monotonic()
    return _until(lambda: len(list(store.plans())) >= count, started, 60 * minutes)


def builds_of(server: ComfyServer) -> list[str]:
    """Lines of the server's log on builds."""
    words = ("built ", "Building ", "cannot compile", "could not be built", "needs about")
    return [line[:300] for line in server.log().splitlines() if any(word in line for word in words)]


def seconds_to_free(server: ComfyServer) -> float:
    """From `POST /free` until the GPU's free memory grows no more."""
    free, started = torch.cuda.mem_get_info()[0], time.monotonic()
    ComfyClient(server.url).free()
    grown_s = 0.0
    while time.monotonic() - started < grown_s + SETTLED_S:
        now = torch.cuda.mem_get_info()[0]
        if now > free + MIB:
            free, grown_s = now, time.monotonic() - started
        time.sleep(0.005)
    return grown_s


def _until(reached: Callable[[], bool], started: float, timeout_s: float) -> float | None:
    while time.monotonic() - started < timeout_s:
        if reached():
            return time.monotonic() - started
        time.sleep(0.25)
    return None
