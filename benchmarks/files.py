"""`run.py bench files`: Wan 2.2's expert of 14 billion parameters in fp8 with scales, in a ComfyUI on the GPU at hand.

ComfyUI's own loader and sampler, with I2V Compile Model between them and without it, by turns in one server; and
in a server that multiplies in fp8 wherever it can. A call's time is the difference of two runs' by the
difference of their steps. Weights are random. A figure without a measurement is null.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..pipeline.request import ClipSize
from ..remote.comfyui.client import ComfyClient, RunResult
from ..remote.comfyui.server import ComfyHost, ComfyServer, find_comfyui, not_found_reason, start_server
from .card_prompts import CORE_MODELS, base_folder, core_sampler, core_wan, node, write_by_comfyui
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .live import ARGUMENTS, Prompt, Report
from .node_texts import Heard

DESCRIPTION = "Wan 2.2's expert of 14 billion parameters in fp8 with scales, by ComfyUI's own loader and sampler."
RESULTS = Path(__file__).resolve().parent / "results" / "files" / "figures.json"
NAMES = ("wan_fp8_weights_gib", "wan_fp8_call_ms", "comfyui_fp8_call_ms", "reports_settled")
SCRIPT = CORE_MODELS.with_name("core_wan.py")
EXPERT, TINY = "wan22_a14b_fp8_scaled", "tiny_wan22_a14b_fp8_scaled"
FAST = ("--fast", "fp8_matrix_mult")
FEW, MANY = 2, 6
GIB = 1 << 30


@dataclass(frozen=True)
class Clip:
    """The model's file, and the clip to be made with it."""

    model: str
    size: ClipSize


FULL_SIZE = Clip(EXPERT, ClipSize(832, 480, 81))
SMALL = Clip(TINY, ClipSize(64, 64, 9))


def main(argv: Sequence[str]) -> int:
    """Measures, and writes after each figure; 1 when there is no ComfyUI or no GPU."""
    parser = argparse.ArgumentParser(prog="run.py bench files", description=DESCRIPTION)
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file of all figures")
    parser.add_argument("--work", type=Path, help="a folder for models and engines, kept; a temporary one otherwise")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, on any device: a trial of the benchmark")
    parser.add_argument("--only", choices=("plain", "fast"), help="one of the two servers alone")
    options = parser.parse_args(argv)
    host = find_comfyui()
    if host is None or not (torch.cuda.is_available() or options.tiny):
        sys.stderr.write(f"{not_found_reason() if host is None else 'no CUDA GPU was found'}\n")
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        work = options.work or Path(temporary)
        report = Report(options.out, NAMES, "files.json")
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        report.note(date=now(), machine=describe_machine(device), versions=describe_versions())
        report.note(commit=describe_commit(None))
        clip = SMALL if options.tiny else FULL_SIZE
        base = _base(host, work, clip)
        flags = (*ARGUMENTS, *(() if torch.cuda.is_available() else ("--cpu",)))
        if options.only != "fast":
            with start_server(host, base, flags) as server:
                _side_by_side(server, clip, report)
        if options.only != "plain":
            with start_server(host, base, (*flags, *FAST)) as server:
                _in_fp8(server, clip, report)
    return 0


def _base(host: ComfyHost, work: Path, clip: Clip) -> Path:
    """A base folder for ComfyUI with the models."""
    models = work / "models"
    models.mkdir(parents=True, exist_ok=True)
    write_by_comfyui(host, CORE_MODELS, models, models)
    file = models / "diffusion_models" / f"{clip.model}.safetensors"
    if not file.is_file():
        write_by_comfyui(host, SCRIPT, models, file)
    base = work / "base"
    base.mkdir(exist_ok=True)
    return base_folder(base, models)


def _side_by_side(server: ComfyServer, clip: Clip, report: Report) -> None:
    """The graph without the node and with it, by turns; then both in one prompt, to see how far they are apart."""
    for turn in ("", "_again"):
        report.note(**{f"comfyui_fp8_call_ms{turn}": _call_ms(server, clip, "none")})
        if not turn:
            heard = Heard()
            first_s = _run(server, prompt_of(clip, FEW, "build"), heard)
            report.note(wan_fp8_first_s=first_s, wan_fp8_first_lines=heard.lines)
        report.note(**{f"wan_fp8_call_ms{turn}": _call_ms(server, clip, "build")})
    heard = Heard()
    result = _result(server, both_of(clip), heard)
    apart, weights = result.outputs["difference"], result.outputs["models"]
    distance_db = 10 * math.log10(apart["std"][0] ** 2 / max(apart["mse"][0], 1e-20))
    report.note(wan_fp8_distance_db=distance_db, wan_fp8_weights_gib=weights["bytes"][0] / GIB)
    report.note(wan_fp8_lines=heard.lines, models=weights["models"])


def _in_fp8(server: ComfyServer, clip: Clip, report: Report) -> None:
    """The graph without the node and with it, where ComfyUI multiplies in fp8 wherever it can."""
    report.note(comfyui_fp8_matrix_mult_call_ms=_call_ms(server, clip, "none"))
    heard = Heard()
    _run(server, prompt_of(clip, FEW, "build"), heard)
    report.note(wan_fp8_matrix_mult_call_ms=_call_ms(server, clip, "build"), wan_fp8_matrix_mult_lines=heard.lines)


def _call_ms(server: ComfyServer, clip: Clip, way: str) -> float:
    """Milliseconds of one call of the network in a run that has been made before."""
    seconds = [_run(server, prompt_of(clip, steps, way)) for steps in (FEW, FEW, MANY)]
    return 1000 * (seconds[-1] - seconds[-2]) / (MANY - FEW)


def _run(server: ComfyServer, prompt: Prompt, heard: Heard | None = None) -> float:
    """Seconds from Run to the prompt's end."""
    started = time.monotonic()
    _result(server, prompt, heard)
    return time.monotonic() - started


def _result(server: ComfyServer, prompt: Prompt, heard: Heard | None = None) -> RunResult:
    """Raises RuntimeError for a prompt that fails."""
    result = ComfyClient(server.url).run(prompt, timeout_s=900, on_text=heard)
    if result.status != "success":
        raise RuntimeError(f"Expected latents, found {result.status}: {result.error}; {server.log()[-2000:]}")
    return result


def prompt_of(clip: Clip, steps: int, way: str) -> Prompt:
    """ComfyUI's own graph for a Wan without guidance, up to its latents; with the node where `way` is its policy."""
    prompt = _conditioned(clip)
    model = "model" if way == "none" else "compiled"
    prompt["sampler"] = _sampler(model, steps)
    prompt["saved"] = node("SaveLatent", samples=["sampler", 0], filename_prefix="latents")
    return prompt if way != "none" else {name: each for name, each in prompt.items() if name != "compiled"}


def both_of(clip: Clip) -> Prompt:
    """The graph with the node and without it, how far their latents are apart, and the models in memory."""
    prompt = {**_conditioned(clip), "sampler": _sampler("compiled", FEW)}
    prompt["plain"] = {**prompt["sampler"], "inputs": {**prompt["sampler"]["inputs"], "model": ["model", 0]}}
    for name, source in (("one", "sampler"), ("other", "plain")):
        prompt[name] = node("ProbeLatents", samples=[source, 0])
    prompt["difference"] = node("ProbeDifference", a=["one", 0], b=["other", 0])
    prompt["models"] = node("ProbeModels", after=["one", 0])
    return prompt


_seeds = iter(range(1, 1 << 30))


def _sampler(model: str, steps: int) -> dict[str, Any]:
    """A sampler with a seed of its own: ComfyUI answers what it knows from its cache."""
    return core_sampler(model, seed=next(_seeds), steps=steps, cfg=1.0)


def _conditioned(clip: Clip) -> Prompt:
    return core_wan(clip.model, clip.size, tokens=512)
