"""`run.py engine`: the store of engines on the command line, by the same code as the nodes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..common.device import default_device
from ..common.errors import I2VError, InputError
from ..common.pack_paths import PACK
from ..common.spec import PRECISIONS, QUANTIZED
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..engine_builder.backends.tensorrt.library import RTX_ARCHS
from ..engine_builder.store.store import EngineStore
from ..pipeline.conditioning import check_fields
from ..pipeline.models.registry import open_model
from ..runtime.calibration import read_calibration_data
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import PRESETS, SHAPE_POLICIES, WEIGHT_PLACES, EnginePolicy
from ..runtime.engines.presets import parse_presets
from ..runtime.prebuild import ALL, Prebuild, component_names, prebuild
from ..runtime.tools.doctor import diagnose
from ..runtime.tools.engine_list import KEY_CHARS, Checked, check, chosen, describe


def parser() -> argparse.ArgumentParser:
    """The options of every subcommand."""
    top = argparse.ArgumentParser("run.py engine", description="Build, list, check and remove compiled engines.")
    _add_common(top, default_store(), in_json=False)
    behind = argparse.ArgumentParser(add_help=False)  # without defaults, which would undo what stands before a command
    _add_common(behind, argparse.SUPPRESS, in_json=argparse.SUPPRESS)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def add(name: str, words: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=words, parents=[behind])

    _add_build(add("build", "compile a checkpoint's networks"))
    add("list", "what is in the store")
    verify = add("verify", "check the files of engines against their digests")
    verify.add_argument("keys", nargs="*", metavar="KEY", help="the first digits of a key; all engines if none")
    prune = add("prune", "remove engines, and what dead builds left")
    prune.add_argument("keys", nargs="*", metavar="KEY", help="the first digits of a key")
    prune.add_argument("--all", action="store_true", help="remove every engine")
    add("doctor", "which backends can run here, and what to install")
    return top


def _add_common(parser: argparse.ArgumentParser, store: Path | str, in_json: bool | str) -> None:
    """Options that hold for all subcommands, taken before and behind them."""
    parser.add_argument("--store", type=Path, default=store, metavar="DIR", help=f"the engines ({default_store()})")
    parser.add_argument("--json", action="store_true", default=in_json, help="answer in JSON, for programs")


def default_store() -> Path:
    """models/i2v_engines of the ComfyUI that contains the pack, or a folder of the pack's own."""
    models = PACK.parent.parent / "models"
    return models / "i2v_engines" if PACK.parent.name == "custom_nodes" and models.is_dir() else PACK / ".cache/engines"


def main(argv: Sequence[str]) -> int:
    """Runs one subcommand; 0, or 1 after one sentence on the error."""
    options = parser().parse_args(argv)
    try:
        rows = COMMANDS[options.command](options, EngineStore(options.store))
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py engine: {error}\n")
        return 1
    lines = [row["text"] for row in rows] or [f"There are no engines in {options.store}."]
    sys.stdout.write((json.dumps(rows, indent=1) if options.json else "\n".join(lines)) + "\n")
    return 0 if all(row.get("ok", True) for row in rows) else 1


def _add_build(build: argparse.ArgumentParser) -> None:
    build.add_argument(
        "model", type=Path, metavar="MODEL", help="the checkpoint's folder; its configurations alone do for tensorrt"
    )
    build.add_argument("--component", choices=[ALL, *component_names()], default=ALL)
    build.add_argument("--shapes", choices=SHAPE_POLICIES, default="range", help="every size, or this one alone")
    build.add_argument("--presets", metavar="SIZES", help="these alone, in one engine, such as 512x512x16,1280x704x16")
    build.add_argument("--width", type=int, default=512, metavar="PIXELS")
    build.add_argument("--height", type=int, default=512, metavar="PIXELS")
    build.add_argument("--frames", type=int, default=16, metavar="N")
    build.add_argument("--precision", choices=[AUTO, *PRECISIONS, *QUANTIZED], default=AUTO)
    build.add_argument(
        "--calibrate",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="for int8 and fp8: a picture, or a folder of them, to take the scales from; may be given again",
    )
    build.add_argument(
        "--prompt",
        action="append",
        default=[],
        metavar="TEXT",
        help="what the pictures are made to do for that; may be given again",
    )
    build.add_argument("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    build.add_argument("--target", metavar="ARCHS", help=f"other GPUs, by commas: {','.join(RTX_ARCHS)}")
    build.add_argument(
        "--lora",
        nargs=2,
        action="append",
        default=[],
        metavar=("FILE", "STRENGTH"),
        help="merge a LoRA into the weights first, as the node I2V LoRA does; may be given again",
    )
    build.add_argument(
        "--weights",
        choices=WEIGHT_PLACES,
        default=AUTO,
        help="outside the engine, so that one serves every fine-tune, or inside it",
    )
    build.add_argument("--force", action="store_true", help="build again even if the engine is there")


def _build(options: argparse.Namespace, store: EngineStore) -> list[dict[str, Any]]:
    check_fields({"width": options.width, "height": options.height, "num_frames": options.frames})
    device = default_device()
    presets = () if options.presets is None else parse_presets(options.presets)
    shapes = PRESETS if presets else options.shapes
    adapters = [(file, _strength(text), ()) for file, text in options.lora]
    model, rows = open_model(options.model, adapters, needs_weights=bool(adapters)), []
    names = model.engine_components if options.component == ALL else (options.component,)
    calibration_data = read_calibration_data(options.calibrate, options.prompt) if options.calibrate else None
    for arch in options.target.split(",") if options.target else [None]:
        precision = "fp16" if arch is not None and options.precision == AUTO else options.precision
        policy = EnginePolicy(options.backend, precision, shapes, presets=presets, weights=options.weights)
        job = Prebuild(
            tuple(names), options.width, options.height, options.frames, options.force, arch, calibration_data
        )
        lines = prebuild(EngineSet(model, store, policy, device), job, _Progress())
        rows += [{"target": arch or "this machine", "text": line} for line in lines]
    return rows


def _strength(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise InputError(f"The strength of a LoRA is a number such as 1 or 0.8, found {text!r:.80}.") from error


def _list(options: argparse.Namespace, store: EngineStore) -> list[dict[str, Any]]:
    return [describe(plan) for plan in store.plans()]


def _verify(options: argparse.Namespace, store: EngineStore) -> list[dict[str, Any]]:
    return [_verdict(check(plan)) for plan in chosen(options.keys, store)]


def _verdict(checked: Checked) -> dict[str, Any]:
    key, component = checked.plan.manifest.key, checked.plan.manifest.spec.network.component
    text = f"{key[:KEY_CHARS]}  {component:<14} {checked.error or 'whole'}"
    return {"key": key, "ok": not checked.error, "text": text}


def _prune(options: argparse.Namespace, store: EngineStore) -> list[dict[str, Any]]:
    plans = list(store.plans()) if options.all else chosen(options.keys, store) if options.keys else []
    for plan in plans:
        store.delete(plan.manifest.key)
    swept = store.sweep()
    rows = [{"key": plan.manifest.key, "text": f"removed {describe(plan)['text']}"} for plan in plans]
    return [*rows, {"swept": swept, "text": f"removed {swept} leftovers of dead builds"}]


def _doctor(options: argparse.Namespace, store: EngineStore) -> list[dict[str, Any]]:
    device = default_device()
    found = diagnose(device)
    rows: list[dict[str, Any]] = [{"device": str(device), "text": found.device}, {"text": found.abilities}]
    rows += [
        {
            "backend": state.name,
            "usable": state.usable,
            "text": f"{state.name:<12} {state.verdict}: {state.reason}"
            + (f" To install it: {state.install}" if state.install else ""),
        }
        for state in found.backends
    ]
    return [*rows, {"why": found.why, "text": found.why}]


class _Progress:
    """A line on the terminal that follows a build; silent without a terminal."""

    def __init__(self) -> None:
        self._watched = sys.stderr.isatty()

    def __call__(self, stage: str, done: float) -> None:
        if self._watched:
            end = "\n" if done >= 1.0 else ""
            sys.stderr.write(f"\r{done:4.0%}  {stage:<40}{end}")
            sys.stderr.flush()


COMMANDS: dict[str, Callable[[argparse.Namespace, EngineStore], list[dict[str, Any]]]] = {
    "build": _build,
    "list": _list,
    "verify": _verify,
    "prune": _prune,
    "doctor": _doctor,
}
