"""`run.py bench weightless`: TensorRT-RTX's plans with weights outside and inside, at the published sizes.

It builds for GPUs that are not here, so that this runs on any machine. Engines with weights outside are built from
configurations alone, without any checkpoint; those inside from random weights. Nothing here has run on a GPU.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.pack_paths import PACK
from ..engine_builder.backends.base import INSIDE, OUTSIDE
from ..engine_builder.build.build_process import BuildProcess
from ..engine_builder.store.manifest import Manifest
from ..engine_builder.store.store import EngineStore
from ..pipeline.dummies.full_size import FullSize, write_full_checkpoint, write_random_checkpoint
from ..pipeline.models.base import VideoModel
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipSize
from ..runtime.clip_sizes import clip_sizes
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .build_cases import add_row, case_parser, run_cases
from .full_models import PUBLISHED, Published, write_configuration

RESULTS = Path(__file__).resolve().parent / "results" / "weightless"
I2VGEN, SVD, WAN = "I2VGen-XL", "SVD-XT", "Wan 2.1 I2V 14B"
WAN_BLOCK = "Wan 2.1 I2V 14B, one block of 40"
CHECKPOINTS = {I2VGEN: "i2vgen-xl-random", SVD: "svd-xt-random"}
"""Checkpoints of random weights, for engines that hold them."""
WAN_PARTS = {"core": ("transformer", "image_encoder"), "vae": ("vae",), "image": ("image_encoder",)}
"""Parts of a Wan that decide about a component, by the beginning of its name, for engines that hold weights. The text
encoder is not among them: its build would take some five times its 11 GiB of weights."""
SIZES = {I2VGEN: ClipSize(512, 512, 16), SVD: ClipSize(1024, 576, 14), WAN: ClipSize(832, 480, 81)}
ARCHS, PRECISIONS = ("sm_86", "sm_89", "sm_120"), ("fp16", "bf16")
MIB, GIB = 1 << 20, 1 << 30


@dataclass(frozen=True)
class Case:
    """An engine to build."""

    model: str
    component: str
    weights: str
    precision: str = "fp16"
    arch: str = "sm_89"

    def __str__(self) -> str:
        return f"{self.model}: {self.component} {self.weights} {self.precision} {self.arch}"


def _cases() -> list[Case]:
    i2vgen = [Case(I2VGEN, name, OUTSIDE) for name in ("text_encoder", "image_encoder", "vae_encoder", "vae_decoder")]
    svd = [Case(SVD, name, OUTSIDE) for name in ("core", "vae_decoder")]
    core = [Case(I2VGEN, "core", OUTSIDE, precision, arch) for precision in PRECISIONS for arch in ARCHS]
    block = [Case(WAN_BLOCK, "core", OUTSIDE, precision, arch) for precision in PRECISIONS for arch in ARCHS]
    vae = ("vae_encoder_first", "vae_encoder_next", "vae_encoder_last", "vae_decoder_first", "vae_decoder_next")
    wan = [Case(WAN, name, OUTSIDE, "bf16") for name in ("text_encoder", "image_encoder", *vae, "core")]
    held = [case for case in wan if case.component not in ("core", "text_encoder")]
    inside = [replace(case, weights=INSIDE) for case in (core[1], *i2vgen, *svd, block[1], *held)]
    return [*core, *block, *i2vgen, *svd, *wan, *inside]


CASES = tuple(_cases())


def main(argv: Sequence[str]) -> int:
    """Builds one after another and writes the results after each; 1 if any failed."""
    options = case_parser("weightless", __doc__, RESULTS).parse_args(argv)

    def build(case: Case) -> str:
        row = measure(case)
        write(case, row, options.out)
        return f"{case}: {json.dumps(row)}"

    return run_cases(options, CASES, build)


def measure(case: Case) -> dict[str, Any]:
    """Figures of the case's build, whose engine is removed; raises EngineError when it cannot be built."""
    with tempfile.TemporaryDirectory(prefix="i2v-weightless-", ignore_cleanup_errors=True) as work:
        model = _model(case, Path(work) / "model")
        policy = EnginePolicy("auto", case.precision, "exact", weights=case.weights)
        engines = EngineSet(model, EngineStore(Path(work) / "engines"), policy, torch.device("cpu"))
        limits = model.components[case.component].spec.limits.ranges
        asked = clip_sizes(model, *SIZES[case.model.partition(",")[0]])
        sizes = {name: min(size, limits[name].max) for name, size in asked.items() if name in limits}
        with BuildProcess() as process:
            manifest = engines.build(case.component, sizes, process, arch=case.arch).plan.manifest
    return _figures(manifest)


def _model(case: Case, folder: Path) -> VideoModel:
    """The configurations alone, or for weights inside a checkpoint of random weights."""
    if case.weights == INSIDE:
        return open_model(_checkpoint(case, folder))
    return open_model(write_configuration(_published(case.model), folder), needs_weights=False)


def _checkpoint(case: Case, folder: Path) -> Path:
    """A checkpoint of random weights; of a Wan, only what decides about the component has its published size."""
    if case.model in CHECKPOINTS:
        kept = PACK / ".cache" / "checkpoints" / CHECKPOINTS[case.model]
        return write_full_checkpoint(kept, torch.device("cpu"), 0)
    published = _published(case.model)
    whole = {part: published.changes[part] for part in WAN_PARTS[case.component.partition("_")[0]]}
    width = {"d_model": published.changes["text_encoder"]["d_model"]}
    full = FullSize(published.write_tiny, {**whole, "text_encoder": width})
    return write_random_checkpoint(full, folder, torch.device("cpu"), 0)


def _published(title: str) -> Published:
    found = next(each for each in PUBLISHED if each.title == title.partition(",")[0])
    if title != WAN_BLOCK:
        return found
    return replace(found, changes={**found.changes, "transformer": {**found.changes["transformer"], "num_layers": 1}})


def _figures(manifest: Manifest) -> dict[str, Any]:
    details = {name: int(manifest.details[name]) for name in ("activation_bytes", "peak_memory_bytes", "layers")}
    return {"build_s": manifest.build_s, "size_bytes": manifest.size_bytes, **details}


def write(case: Case, row: Mapping[str, Any], folder: Path) -> None:
    """Adds a row to the results in `folder`, in place of an older one of the same build."""
    document = add_row(folder / "weightless.json", case, {"case": asdict(case), **row}, CASES)
    (folder / "figures.json").write_text(json.dumps(figures(document["rows"]), indent=1) + "\n", "utf-8")
    (folder / "weightless.md").write_text(markdown(document), "utf-8")


def figures(rows: Mapping[str, Any]) -> dict[str, float | int | None]:
    """The figures that stand for all, by name; None for those without a build."""
    core, block = (rows.get(str(Case(model, "core", OUTSIDE))) for model in (I2VGEN, WAN_BLOCK))
    return {
        "core_plan_mib": core and round(core["size_bytes"] / MIB, 1),
        "core_build_s": core and core["build_s"],
        "core_peak_gib": core and round(core["peak_memory_bytes"] / GIB, 2),
        "wan_block_plan_mib": block and round(block["size_bytes"] / MIB, 1),
        "wan_block_build_s": block and block["build_s"],
        "networks_built": len({(row["case"]["model"], row["case"]["component"]) for row in rows.values()}),
    }


def markdown(document: Mapping[str, Any]) -> str:
    """The results as a page."""
    machine, versions = document["machine"], document["versions"]
    lines = [
        "# Plans with weights outside and inside",
        "",
        f"TensorRT-RTX {versions.get('tensorrt-rtx')} on {machine['cores']} cores of {machine['processor']} without a "
        "GPU, each build in a process of its own, export included. Weights outside: from configurations alone. What "
        "the GPU needs for activations is what the library says; nothing here has run on one.",
        "",
        "| network | weights | precision | GPU | layers | plan, MiB | seconds | peak memory, GiB | activations, GiB |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in document["rows"].values()]
    return "\n".join(lines) + "\n"


def _cells(row: Mapping[str, Any]) -> list[str]:
    case = row["case"]
    return [
        f"{case['model']}: {case['component']}",
        case["weights"],
        case["precision"],
        case["arch"],
        str(row["layers"]),
        f"{row['size_bytes'] / MIB:.1f}",
        f"{row['build_s']:.1f}",
        f"{row['peak_memory_bytes'] / GIB:.2f}",
        f"{row['activation_bytes'] / GIB:.2f}",
    ]
