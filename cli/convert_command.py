"""`run.py convert`: single files of published checkpoints become a folder that I2V Model Loader opens."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import I2VError
from ..common.pack_paths import PACK
from ..pipeline.convert.convert import KINDS, convert

DESCRIPTION = """\
Make a folder that I2V Model Loader opens from the single files that people have of DynamiCrafter, ToonCrafter, Stable
Video Diffusion and Wan: all files of a model. They are .safetensors, for a pickle can run code. Parts that
DynamiCrafter's files lack, such as text encoders, are taken from folders in diffusers' layout. Every tensor keeps its
precision, and the memory holds one of them at a time; the same command goes on where an earlier one ended."""


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser("run.py convert", description=DESCRIPTION)
    top.add_argument("files", nargs="+", type=Path, metavar="FILE", help="the checkpoint's .safetensors files")
    top.add_argument(
        "--out", required=True, metavar="NAME", help=f"the new folder: a name in {default_folder()}, or a path"
    )
    top.add_argument(
        "--parts",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="a model's folder, or one of its parts, that has what the files lack (repeatable)",
    )
    top.add_argument("--kind", choices=KINDS, help="which checkpoint it is, where its tensors do not say")
    return top


def default_folder() -> Path:
    """models/i2v of the ComfyUI that contains the pack, or the present folder."""
    models = PACK.parent.parent / "models"
    return models / "i2v" if PACK.parent.name == "custom_nodes" and models.is_dir() else Path.cwd()


def main(argv: Sequence[str]) -> int:
    """Runs the conversion; 0, or 1 after one sentence on the error."""
    options = parser().parse_args(argv)
    out = default_folder() / Path(options.out).expanduser()  # a path from the root stays what it is
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = convert(options.files, options.parts, out, options.kind, lambda line: print_line(f"  {line}"))
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py convert: {error}\n")
        return 1
    print_line(f"{made} is ready for I2V Model Loader.")
    return 0


def print_line(line: str) -> None:
    """Writes a line for the user."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
