"""`run.py bench NAME`: the benchmarks by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

BENCHMARKS = {
    "builds": "engines of I2VGen-XL at its published size: seconds, memory, bytes, without a GPU too",
    "call": "one call of Wan 2.1's 14 billion parameters, with random weights",
    "cards": "the same clips on a GPU of which only 8, 12, 16 or 24 GiB are free",
    "dynamicrafter": "DynamiCrafter's call and clip at 512 and 1024 beside torch.compile; its parity and its schedule",
    "environments": "what runs beside other versions of PyAV, transformers, diffusers and ONNX Runtime",
    "files": "Wan 2.2's expert in fp8 with scales in ComfyUI, by engines of its blocks and as it is",
    "fleet": "what a fleet adds to a clip, what 10,000 jobs cost, how soon the service answers; two GPUs against one",
    "four-steps": "Wan 2.2 A14B distilled to four steps, picture to file, in bf16 and in fp8",
    "frames": "interpolation, upscaling and a long film beside ComfyUI's own nodes; a clip in two phases",
    "fewer": "the presets of I2V Accelerate at published sizes, picture to file, each beside the exact clip",
    "live": "a new ComfyUI on this GPU: the first video, engines that come by themselves, a new server, /free",
    "pruning": "the bundled model's clips with 2:4 sparsity and with layers left out: what they lose, on a CPU",
    "scratch": "what each network takes of a GPU beside its weights, in eager PyTorch at published sizes",
    "sizes": "the largest clip that each family serves on cards of 8 to 141 GiB, computed; no GPU is needed",
    "two-gpus": "one GPU against two of a host: steps of three families, and a clip of four steps",
    "weightless": "TensorRT's plans with their weights outside and inside, at published sizes, without a GPU",
    "ladder": "one clip in every way there is here, from diffusers in fp32 to the fastest engine",
}
MODULES = {"call": "one_call", "four-steps": "four_steps", "two-gpus": "two_gpus"}
"""Modules of commands with another name."""
USAGE = "usage: run.py bench NAME [options]\n\n" + "".join(
    f"  {name:<14} {what}\n" for name, what in BENCHMARKS.items()
)


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark that `argv` names first; 2 after the usage when it names none."""
    if not argv or argv[0] not in BENCHMARKS:
        asked = bool(argv) and argv[0] in ("-h", "--help")
        (sys.stdout if asked else sys.stderr).write(USAGE)
        return 0 if asked else 2
    return importlib.import_module(f".{MODULES.get(argv[0], argv[0])}", __package__).main(argv[1:])
