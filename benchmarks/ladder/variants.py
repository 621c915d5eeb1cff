"""The ladder's variants: from diffusers as it is published to every engine and every rewrite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import BACKENDS
from ...pipeline.models.base import VideoModel
from .row import MISSING, Row

REFERENCE, STOCK_EAGER = "diffusers-fp32", "diffusers-half"
EAGER = "eager"
COMPILED = "compile-default"
INDUCTOR = "inductor"
STOCK, ENGINES = "stock", "engines"
REWRITES = ("none", "last", "all")
NOT_YET = "It has not been measured yet."
_NAMES = {"inductor": "AOTInductor", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT"}


@dataclass(frozen=True)
class Variant:
    """One way to make the clip.

    `way` is diffusers' pipeline (`stock`) or the pack's own loop (`engines`). `rank` is its place in the
    order of measurement: the ladder may end before the last. `captured` names a second row: the same in a CUDA graph.
    """

    name: str
    title: str
    way: str
    precision: str
    rank: float
    backend: str = EAGER
    rewrites: tuple[str, ...] | None = None
    compile_mode: str = ""
    captured: str = ""
    headline: bool = False
    """The pack's main way: its steps are sampled more often."""
    about_s: float = 0.0
    """Seconds at the published size with 50 steps on an H200, by which it is decided whether there is time."""

    @property
    def is_reference(self) -> bool:
        """Whether the others are compared with this one."""
        return self.name == REFERENCE

    @property
    def goes_on(self) -> bool:
        """Whether its backend also serves what comes after the clip; once for each, not for every rewrite."""
        return self.way == ENGINES and self.rewrites is None

    @property
    def rows(self) -> tuple[Row, ...]:
        """The rows that it gives, still empty."""
        first = Row(self.name, self.title, MISSING, NOT_YET)
        graph = Row(self.captured, f"{self.title}, CUDA graph", MISSING, first.reason)
        return (first, graph) if self.captured else (first,)


def ladder(model: VideoModel, device: torch.device, rewrites: str, precision: str) -> tuple[list[Variant], list[Row]]:
    """The variants that can run here, in the order in which they are shown, and rows with the reasons of others.

    `precision` is that of all but row 0.
    """
    half = [Variant(STOCK_EAGER, f"diffusers, {precision}", STOCK, precision, 3.5, about_s=60)]
    variants = [
        Variant(REFERENCE, "diffusers, fp32", STOCK, "fp32", 0, about_s=110),
        *(half if precision != "fp32" else []),
        Variant(EAGER, f"eager PyTorch, {precision}", ENGINES, precision, 4, about_s=45),
        *_compiled(device, precision),
    ]
    missing: list[Row] = []
    for name, backend in BACKENDS.items():
        if name == EagerBackend.name:
            continue
        found = backend.availability(device)
        if not found.ok:
            missing.append(Row(name, _NAMES.get(name, name), MISSING, found.sentence))
        elif name == INDUCTOR:
            variants += _rewritten(model, precision, rewrites)
        else:
            variants.append(
                Variant(name, f"{_NAMES.get(name, name)}, {precision}", ENGINES, precision, 6, name, about_s=240)
            )
    return _with_headline(variants), missing


def _with_headline(variants: list[Variant]) -> list[Variant]:
    """Marks the main variant of the pack: its last engine row, if none is marked."""
    if any(variant.headline for variant in variants):
        return variants
    last = [variant for variant in variants if variant.way == ENGINES][-1]
    return [replace(variant, headline=variant is last) for variant in variants]


def _compiled(device: torch.device, precision: str) -> list[Variant]:
    """torch.compile of diffusers' own networks: the state without this pack."""
    graph = device.type == "cuda"
    return [
        Variant(
            name, title, STOCK, precision, rank,
            compile_mode=mode, captured=f"{name}-graph" if graph else "", about_s=about_s,
        )
        for name, title, mode, rank, about_s in (
            (COMPILED, "torch.compile", "default", 2.0, 170.0),
            ("compile-max", "torch.compile max-autotune", "max-autotune-no-cudagraphs", 9.0, 400.0),
        )
    ]  # fmt: skip


def _rewritten(model: VideoModel, precision: str, rewrites: str) -> list[Variant]:
    """The engine as it is used; by `rewrites` also that of the network as it is published (`last`), and all on
    the way from the one to the other (`all`)."""
    used, names = model.rewrites(model.denoiser, INDUCTOR), model.known_rewrites.get(model.denoiser, ())
    counts = {"none": range(0), "last": range(1), "all": range(len(names) + 1)}[rewrites]
    partial = [
        Variant(
            name=f"{INDUCTOR}+{names[count - 1]}" if count else f"{INDUCTOR}-plain",
            title=f"... + {names[count - 1]}" if count else "AOTInductor, network as published",
            way=ENGINES,
            precision=precision,
            rank=8 + count / 100 if count else 5,
            backend=INDUCTOR,
            rewrites=names[:count],
            about_s=200,
        )
        for count in counts
        if names[:count] != used
    ]
    title = f"AOTInductor, {len(used)} rewrites" if used else "AOTInductor"
    return [*partial, Variant(INDUCTOR, title, ENGINES, precision, 1, INDUCTOR, headline=True, about_s=300)]


@dataclass(frozen=True)
class Task:
    """A variant to climb in a process of its own; `warm` is a second process that finds everything on disk."""

    variant: Variant
    warm: bool = False

    @property
    def rank(self) -> float:
        """Place of the task in the order: the lowest rank comes first."""
        return max(3.0 if self.variant.headline else 7.0, self.variant.rank + 0.5) if self.warm else self.variant.rank

    @property
    def about_s(self) -> float:
        """The seconds it takes at the published size."""
        return 50.0 if self.warm else self.variant.about_s

    @property
    def describes(self) -> str:
        """The task in a word."""
        return f"{self.variant.name}, warm start" if self.warm else self.variant.name


def tasks(variants: Sequence[Variant], wanted: Sequence[str], rows: Mapping[str, Row]) -> list[Task]:
    """Tasks to do, the most important first.

    `wanted` are names of rows to measure anew. When there are none, the tasks give the figures that `rows`, from an
    earlier run, lack. Row 0 takes longest, and its warm start would give no new figure.
    """

    def due(variant: Variant, names: Sequence[str], figure: str) -> bool:
        if wanted:
            return any(row.name in wanted for row in variant.rows)
        return any(name not in rows or figure not in rows[name].figures for name in names)

    found = [Task(variant) for variant in variants if due(variant, [row.name for row in variant.rows], "clip_hot_s")]
    warm = [
        variant
        for variant in variants
        if not variant.is_reference and due(variant, [variant.name], "clip_warm_start_s")
    ]
    return sorted([*found, *(Task(variant, warm=True) for variant in warm)], key=lambda task: task.rank)
