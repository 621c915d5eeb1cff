"""`run.py bench builds`: what it takes to build engines of I2VGen-XL at its published size, with random weights.

TensorRT-RTX builds for a GPU that is not here, so that this runs on any machine; ONNX Runtime runs one of its graphs
on the CPU beside eager PyTorch. Each build has a process of its own, and its engine is removed after it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.pack_paths import PACK
from ..engine_builder.build.build_process import BuildProcess
from ..engine_builder.store.manifest import Manifest
from ..engine_builder.store.store import EngineStore
from ..pipeline.dummies.full_size import write_full_checkpoint
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipSize
from ..runtime.clip_sizes import clip_sizes
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import PRESETS, EnginePolicy
from ..runtime.engines.presets import parse_presets
from .build_cases import add_row, case_parser, run_cases

RESULTS = Path(__file__).resolve().parent / "results" / "builds"
RANDOM = "i2vgen-xl-random"
RTX, ONNX = "tensorrt", "onnxruntime"
GIB = 1 << 30
SMALL, PUBLISHED, BOTH, SEEN = "512x512x16", "1280x704x16", "512x512x16,1280x704x16", "128x128x2"


@dataclass(frozen=True)
class Case:
    """An engine to build: of which network, by which backend and shape policy, for which size or sizes."""

    component: str
    backend: str
    shapes: str
    sizes: str

    def __str__(self) -> str:
        return f"{self.component} {self.backend} {self.shapes} {self.sizes}"


CASES = (
    Case("text_encoder", RTX, "exact", SMALL),
    Case("image_encoder", RTX, "exact", SMALL),
    *(Case(name, RTX, "exact", size) for name in ("vae_encoder", "vae_decoder") for size in (SMALL, PUBLISHED)),
    Case("vae_decoder", RTX, "range", SMALL),
    Case("vae_decoder", RTX, PRESETS, BOTH),
    Case("core", RTX, "exact", SMALL),
    Case("core", RTX, "exact", PUBLISHED),
    Case("core", RTX, PRESETS, BOTH),
    Case("core", RTX, "range", SMALL),
    *(Case(f"vae_{part}", ONNX, "exact", SEEN) for part in ("encoder", "decoder")),
    *(Case(name, ONNX, "exact", SEEN) for name in ("text_encoder", "image_encoder", "core")),
)


@dataclass(frozen=True)
class Row:
    """Figures of a build: seconds, the peak of its process in host memory, the engine's bytes on disk, its bytes on
    the GPU beside its weights, and its similarity to eager PyTorch where it ran. None for an unknown figure.

    `load` is the number of other programs that wanted a core when the build began, which the seconds depend on.
    """

    case: Case
    build_s: float
    peak_memory_bytes: int | None
    size_bytes: int
    activation_bytes: int | None
    cosine: float | None
    load: float | None


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = case_parser("builds", __doc__, RESULTS)
    top.add_argument("--model", type=Path, metavar="DIR", help="a checkpoint (random weights at the published size)")
    top.add_argument("--target", default="sm_89", metavar="ARCH", help="the GPU to build for (%(default)s)")
    return top


def main(argv: Sequence[str]) -> int:
    """Builds one after another and writes the results after each; 1 if any failed."""
    options = parser().parse_args(argv)

    def build(case: Case) -> str:
        checkpoint = PACK / ".cache" / "checkpoints" / RANDOM
        folder = options.model or write_full_checkpoint(checkpoint, torch.device("cpu"), 0)
        row = measure(case, folder, options.target)
        write(row, options.out, options.target)
        return _line(row)

    return run_cases(options, CASES, build)


def measure(case: Case, folder: Path, target: str) -> Row:
    """Builds the case's engine in fp16 and removes it; raises EngineError when it cannot be built."""
    sizes = parse_presets(case.sizes)
    policy = EnginePolicy(case.backend, "fp16", case.shapes, presets=sizes if case.shapes == PRESETS else ())
    with tempfile.TemporaryDirectory(prefix="i2v-builds-", ignore_cleanup_errors=True) as work:
        engines = EngineSet(open_model(folder), EngineStore(Path(work)), policy, torch.device("cpu"))
        asked, load = clip_sizes(engines.model, *ClipSize(*sizes[0])), _load()
        with BuildProcess() as process:
            arch = target if case.backend == RTX else None
            return _row(case, engines.build(case.component, asked, process, arch=arch).plan.manifest, load)


def _load() -> float | None:
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _row(case: Case, manifest: Manifest, load: float | None) -> Row:
    peak, activation = (manifest.details.get(name) for name in ("peak_memory_bytes", "activation_bytes"))
    return Row(
        case=case,
        build_s=manifest.build_s,
        peak_memory_bytes=None if peak is None else int(peak),
        size_bytes=manifest.size_bytes,
        activation_bytes=None if activation is None else int(activation),
        cosine=None if manifest.verdict is None else manifest.verdict.cosine,
        load=load,
    )


def write(row: Row, folder: Path, target: str) -> None:
    """Adds a row to the results in `folder`, in place of an older one of the same build."""
    document = add_row(folder / "builds.json", row.case, asdict(row), CASES, target=target)
    (folder / "builds.md").write_text(markdown(document), "utf-8")


def markdown(document: dict[str, Any]) -> str:
    """The results as a page."""
    machine, versions = document["machine"], document["versions"]
    lines = [
        "# Builds at the published size",
        "",
        f"I2VGen-XL with random weights, fp16, for {document['target']} by TensorRT-RTX "
        f"{versions.get('tensorrt-rtx')}, on {machine['cores']} cores of {machine['processor']} without a GPU. What "
        "the GPU needs beside the weights is what the library says; nothing here has run on one. Cosine: against eager "
        "PyTorch on the CPU, where ONNX Runtime ran the graph. Load: how many other programs wanted a core when the "
        "build began.",
        "",
        "| network | by | shapes | seconds | load | peak memory, GiB | on disk, MB | activations, GiB | cosine |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in document["rows"].values()]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    case = row["case"]
    return [
        case["component"],
        case["backend"],
        f"{case['shapes']} {case['sizes']}",
        f"{row['build_s']:.0f}",
        _number(row["load"], 1, 1),
        _number(row["peak_memory_bytes"], GIB, 1),
        _number(row["size_bytes"], 1e6, 0),
        _number(row["activation_bytes"], GIB, 2),
        _number(row["cosine"], 1, 7),
    ]


def _number(value: float | None, unit: float, digits: int) -> str:
    return "" if value is None else f"{value / unit:.{digits}f}"


def _line(row: Row) -> str:
    names = ("network", "by", "shapes", "s", "load", "GiB peak", "MB", "GiB activations", "cosine")
    return ", ".join(f"{name} {cell}" for name, cell in zip(names, _cells(asdict(row)), strict=True) if cell)
