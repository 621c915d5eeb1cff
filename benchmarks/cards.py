"""`run.py bench cards`: clips in a ComfyUI with its default flags, on a GPU with a limited amount of free memory.

A process of its own takes the rest of the memory, and ComfyUI sees a card of that size. Each prompt's case, seconds,
peak memory and concessions go into a JSON file after the prompt, and into a table beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_file import write_text
from ..common.errors import I2VError
from ..remote.comfyui.client import ComfyClient, PromptRefusedError, RunTimeoutError, ServerError
from ..remote.comfyui.server import (
    ComfyHost,
    ComfyServer,
    ServerStartError,
    find_comfyui,
    not_found_reason,
    start_server,
)
from ..runtime.tools.table import Table
from .card_prompts import NO_ENGINES, Case, base_folder, cases, write_models
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .live import ARGUMENTS, lines_of
from .node_texts import Heard

DESCRIPTION = "Clips in a ComfyUI with its default flags, on a GPU of which only so much memory is free."
RESULTS = Path(__file__).resolve().parent / "results" / "gpu" / "cards.json"
GIB = 1 << 30
SAMPLE_S = 0.02
READY = "ready"
IDLE_BUILDS = "I2VTRT_BUILD_WHEN_IDLE"
"""Environment variable of the pack: 0 keeps it from building engines while ComfyUI's queue is empty."""
GIVING_WAY = ("at once", "in parts", "Made as", "Made room", "let go", "Memory", "eager", "Eager", "as it is")
"""Words in lines on a node's concessions for lack of memory, or of an engine."""
HEARD = (*GIVING_WAY, "calls by", "built in")
"""Words in lines to keep among those that nodes only show while they run: the others are progress."""
BALLOON = """
import sys
import torch

least, left, taken, size = 2 << 20, int(sys.argv[1]), [], 1 << 60
while size >= least:
    size = min(size, torch.cuda.mem_get_info()[0] - left)
    try:
        taken += [torch.empty(size, dtype=torch.uint8, device="cuda")] if size >= least else []
    except torch.OutOfMemoryError:
        size //= 2
print("ready", flush=True)
sys.stdin.read()
"""
"""Program that takes the GPU's memory until the given bytes are free, reports, and holds it until its input closes."""
CARD = """
import comfy.model_management as memory

TOTAL_BYTES = {total_bytes}
whole = memory.get_total_memory


def total(dev=None, torch_total_too=False):
    found, device = whole(dev, torch_total_too), memory.get_torch_device() if dev is None else dev
    if getattr(device, "type", None) != memory.get_torch_device().type:
        return found
    return (TOTAL_BYTES, TOTAL_BYTES) if torch_total_too else TOTAL_BYTES


memory.get_total_memory = total
NODE_CLASS_MAPPINGS = {{}}
"""
"""Custom node by which ComfyUI sees a card of `total_bytes`; the free memory is still the driver's figure."""


@dataclass(frozen=True)
class Row:
    """Result of one prompt on one card. `traceback` is True if the server's log holds one from this prompt."""

    card_gib: float
    case: str
    describes: str
    elapsed_s: float
    peak_gib: float | None
    error: str | None
    gave_way: tuple[str, ...]
    traceback: bool
    lines: tuple[str, ...]


def main(argv: Sequence[str]) -> int:
    """Measures, and writes after each prompt; 1 when there is no ComfyUI or no GPU."""
    options = _options(argv)
    host = find_comfyui()
    if host is None or not torch.cuda.is_available():
        sys.stderr.write(f"{not_found_reason() if host is None else 'no CUDA GPU was found'}\n")
        return 1
    os.environ[IDLE_BUILDS] = "0"  # the servers inherit it
    chosen = [case for case in cases(options.engines) if options.only in case.name]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        work = options.work or Path(temporary)
        models = work / "models"
        models.mkdir(parents=True, exist_ok=True)
        write_models(host, models, torch.device("cuda", 0))
        torch.cuda.empty_cache()
        report = Report(options.out, options.engines)
        for size in options.sizes:
            base = base_folder(work / f"card-{size:g}", models)
            with noted(report, size), balloon(round(size * GIB)):
                for row in measure_card(host, base, size, chosen, options.timeout):
                    report.add(row)
    return 0


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run.py bench cards", description=DESCRIPTION)
    parser.add_argument("--sizes", type=sizes_of, default=[8.0, 12.0, 16.0, 24.0], help="in GiB, as 8,12,16,24")
    parser.add_argument("--only", default="", help="a part of the names of the prompts to run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file; rows join those that it has")
    parser.add_argument("--work", type=Path, help="a folder for models and engines, kept; a temporary one otherwise")
    parser.add_argument("--timeout", type=float, default=240.0, help="seconds that a prompt may take")
    parser.add_argument("--engines", default=NO_ENGINES, choices=(NO_ENGINES, "auto", "build"), help="of our models")
    return parser.parse_args(argv)


def sizes_of(text: str) -> list[float]:
    """Numbers of GiB from a list with commas; raises ValueError."""
    return [float(part) for part in text.split(",")]


@contextmanager
def noted(report: Report, size: float) -> Iterator[None]:
    """Notes that a card could not be tried, and lets the next one be."""
    try:
        yield
    except (ServerStartError, I2VError, OSError) as error:
        report.failed(size, str(error))


def measure_card(host: ComfyHost, base: Path, size: float, chosen: Sequence[Case], timeout_s: float) -> Iterator[Row]:
    """A row for each prompt, all by one ComfyUI, and by a new one where it went away."""
    node = base / "custom_nodes" / "small_card.py"
    node.write_text(CARD.format(total_bytes=round(size * GIB)), "utf-8")
    before, server = used_bytes(), None
    with ExitStack() as stack:
        for number, case in enumerate(chosen, 1):
            if server is None or server.process.poll() is not None:
                log_path = base / f"comfyui-{number}.log"
                server = stack.enter_context(start_server(host, base, arguments(), log_path))
            yield measure(server, case, size, before, timeout_s)


def arguments() -> tuple[str, ...]:
    """ComfyUI's flags: its default ones on a GPU."""
    return ARGUMENTS if torch.cuda.is_available() else (*ARGUMENTS, "--cpu")


def measure(server: ComfyServer, case: Case, size: float, before: int, timeout_s: float) -> Row:
    """Runs a prompt to its end, good or bad; `before` are the bytes of the GPU in use before the server started."""
    log_length, started = len(server.log()), time.monotonic()
    with Peak(used_bytes) as peak:
        lines, error = attempt(server.url, case, timeout_s)
    elapsed_s = round(time.monotonic() - started, 2)
    log_text = server.log()[log_length:]
    peak_gib = round((peak.most - before) / GIB, 2) if torch.cuda.is_available() else None
    gave_way = tuple(line for line in lines if any(word in line for word in GIVING_WAY))
    return Row(size, case.name, case.describes, elapsed_s, peak_gib, error, gave_way, "Traceback" in log_text, lines)


def attempt(url: str, case: Case, timeout_s: float) -> tuple[tuple[str, ...], str | None]:
    """Lines of the nodes, each once, and the error, if there was one."""
    said, error, texts = tuple[str, ...](), None, Heard()
    try:
        result = ComfyClient(url).run(case.prompt, timeout_s=timeout_s, on_text=texts)
        said, error = lines_of(result), result.error
    except (PromptRefusedError, RunTimeoutError, ServerError) as failure:
        error = f"{type(failure).__name__}: {failure}"
    heard = (line for line in texts.lines if any(word in line for word in HEARD))
    return tuple(dict.fromkeys((*said, *heard))), error


def used_bytes() -> int:
    """Bytes of the GPU in use by all processes; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    free, total = torch.cuda.mem_get_info()
    return total - free


class Peak:
    """The greatest reading while the block ran."""

    def __init__(self, read: Callable[[], int]) -> None:
        self._read, self._over = read, threading.Event()
        self.most = read()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.most = max(self.most, self._read())


@contextmanager
def balloon(left_bytes: int, code: str = BALLOON) -> Iterator[None]:
    """Leaves `left_bytes` of the GPU's memory free within the block; raises I2VError where less is free."""
    free_bytes = torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else left_bytes
    if free_bytes < left_bytes:
        raise I2VError(f"Expected {left_bytes / GIB:g} GiB of free GPU memory, found {free_bytes / GIB:.1f}.")
    command = [sys.executable, "-c", code, str(left_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        try:
            answer = child.stdout.readline().strip() if child.stdout else ""
            if answer != READY:
                raise I2VError(f"Expected the memory to be taken, found that the process for it says {answer!r}.")
            yield
        finally:
            child.communicate()  # closes its input, and waits for its end


class Report:
    """The JSON file of all rows and the table of them, both written anew after each."""

    def __init__(self, path: Path, engines: str) -> None:
        self._path = path
        self._facts: dict[str, Any] = {
            "benchmark": "cards",
            "date": now(),
            "commit": describe_commit(None),
            "machine": describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu", 0)),
            "versions": describe_versions(),
            "engines": engines,
        }

    def add(self, row: Row) -> None:
        """Replaces an older row of the same card and prompt by the new one, and prints it."""
        found = json.loads(json.dumps(asdict(row)))
        others = [each for each in self.rows() if (each["card_gib"], each["case"]) != (row.card_gib, row.case)]
        self._write({"rows": sorted([*others, found], key=lambda each: each["card_gib"])})
        sys.stdout.write(json.dumps(found) + "\n")
        sys.stdout.flush()

    def failed(self, size: float, reason: str) -> None:
        """A card that could not be tried at all."""
        self.add(Row(size, "none", "nothing could be started", 0.0, None, reason, (), False, ()))

    def rows(self) -> list[dict[str, Any]]:
        """Rows of the file."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            return list(json.loads(self._path.read_text("utf-8"))["rows"])
        return []

    def _write(self, rows: dict[str, Any]) -> None:
        content = self._facts | rows
        texts = {self._path: json.dumps(content, indent=1), self._path.with_suffix(".md"): markdown(content)}
        for path, text in texts.items():
            write_text(path, f"{text.rstrip()}\n")


ORIGIN = """\
`python run.py bench cards` on {date}, {gpu}, torch {torch}, commit {commit}. A process of its own took all of the GPU's
memory but so much; a ComfyUI with its default flags was told that the card has no more, and ran one prompt after
another. Published sizes have random weights, and fewer steps than one would take, which changes the seconds and not the
peak. Engines of the pack's own models: {engines}, and none while the queue was empty; that of Compile Model is built in
its prompt, for the first card. The peak is all that the server took of the GPU, its context too.
"""


def markdown(content: dict[str, Any]) -> str:
    """The page: where the figures come from, and a row for each prompt on each card."""
    facts = {**content, "date": content["date"][:10], "gpu": content["machine"]["gpu"]}
    origin = ORIGIN.format(**facts, torch=content["versions"].get("torch"))
    head = ("Card", "What", "Seconds", "Peak", "How it went", "What gave way", "Traceback")
    return f"# Small cards\n\n{origin}\n{Table(head, tuple(map(_cells, content['rows']))).markdown()}"


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['card_gib']:g} GiB",
        f"{row['case']}: {row['describes']}",
        f"{row['elapsed_s']:.1f}",
        "–" if row["peak_gib"] is None else f"{row['peak_gib']:.2f} GiB",
        row["error"] or "made",
        "; ".join(row["gave_way"]) or "nothing",
        "yes" if row["traceback"] else "no",
    )
