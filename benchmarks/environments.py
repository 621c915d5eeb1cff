"""`run.py bench environments`: what runs beside other versions of the libraries that the pack shares with ComfyUI.

Each environment is made anew by venv and pip: what ComfyUI installs, the pack's requirements, then the version that
another pack would put in place. In it small checkpoints of random weights become clips, and clips become files. What
does not run is told in the words that a user would read.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..common.atomic_file import write_text
from ..common.pack_paths import PACK
from .environment_checks import MODELS, YES, run_checks, table

log = logging.getLogger(__name__)

DESCRIPTION = "Make fresh Python environments, and say what runs in each."
RESULTS = Path(__file__).resolve().parent / "results" / "files"
HOST = ("torch==2.13.0", "transformers", "safetensors", "numpy", "pillow", "av", "filelock", "psutil")
"""What ComfyUI brings; PyTorch is the one that the tests are pinned to."""
VERSIONS = ("av", "transformers", "diffusers", "huggingface_hub", "onnxruntime", "onnxruntime-gpu")
REPORT = """
import sys
from importlib.metadata import distributions
print("\\n".join(sorted({f"{x.name} {x.version}" for x in distributions() if x.name in sys.argv[1:]})))
"""
STATE = """
from importlib.metadata import version
found = [f"{name} {version(name)}" for name in ("protobuf", "numpy")]
try:
    import onnxruntime
    found += [x.removesuffix("ExecutionProvider") for x in onnxruntime.get_available_providers()]
except ModuleNotFoundError:
    pass
print(", ".join(found))
"""
KEPT = "kept what was there"
NAMED = {"i2vgen_xl/text_encoder": "text_model.", "wan/image_encoder": "vision_model."}
"""Beginnings of the names of a published encoder's tensors that the newest transformers leaves out."""
TIMEOUT_S = 1800


@dataclass(frozen=True)
class Case:
    """An environment: packages that are there before the pack, that pip is given with it, and that replace others."""

    name: str
    before: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    after: tuple[str, ...] = ()


CASES = (
    Case("the newest of all"),
    Case("PyAV 14", after=("av>=14,<15",)),
    Case("PyAV 15", after=("av>=15,<16",)),
    Case("PyAV 16", after=("av>=16,<17",)),
    Case("transformers 4.50", beside=("transformers==4.50.3",)),
    Case("transformers 4.50 put in later", after=("transformers==4.50.3",)),
    Case("transformers 5.0", after=("transformers==5.0.0",)),
    Case("transformers 5.2", after=("transformers==5.2.0",)),
    Case("diffusers 0.30", after=("diffusers==0.30.3",)),
    Case("onnxruntime-gpu before", before=("onnxruntime-gpu",)),
    Case("protobuf 4 and numpy 1 before", before=("protobuf>=4.25.3,<5", "numpy>=1.26,<2")),
)


def main(argv: Sequence[str]) -> int:
    """Makes the environments one after another, and writes the table after each; 1 where one could not be made."""
    parser = argparse.ArgumentParser(prog="run.py bench environments", description=DESCRIPTION)
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES], help="these environments alone")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the folder of environments.json and .md")
    parser.add_argument("--check", nargs=2, type=Path, metavar=("MODELS", "SCRATCH"), help="check this very one")
    options = parser.parse_args(argv)
    if options.check:
        for finding in run_checks(*options.check):
            sys.stdout.write(json.dumps(finding) + "\n")
            sys.stdout.flush()
        return 0
    cases = [case for case in CASES if options.only is None or case.name in options.only]
    with tempfile.TemporaryDirectory(prefix="i2v-environments-", ignore_cleanup_errors=True) as folder:
        models = Path(folder) / "models"
        _write_models(models)
        return _run(cases, models, Path(folder), options.out)


def _run(cases: Sequence[Case], models: Path, work: Path, out: Path) -> int:
    path = out / "environments.json"
    earlier = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found: dict[str, dict[str, str]] = {}
    for case in cases:
        try:
            found[case.name] = _one(case, models, work / "venv")
        except (OSError, subprocess.SubprocessError) as error:
            log.warning("The environment %s could not be made: %s", case.name, error)
            continue
        # Environments that are not made this time keep what was seen in them.
        seen = {**earlier, **found}
        seen = {each.name: seen[each.name] for each in CASES if each.name in seen}
        write_text(path, json.dumps(seen, indent=1) + "\n")
        write_text(out / "environments.md", "\n".join([HEAD, *table(seen)]) + "\n")
        sys.stdout.write("\n".join(table({case.name: found[case.name]})) + "\n")
        sys.stdout.flush()
    return int(len(found) < len(cases))


HEAD = (
    "# What runs beside other versions\n\n"
    "By `python run.py bench environments`, on a CPU, with PyTorch 2.13: fresh environments, each with what ComfyUI\n"
    "installs, the pack's requirements, then the package that the row names. Clips are of small checkpoints of random\n"
    "weights, in eager PyTorch. The words below the table are what a user reads.\n"
)


def _one(case: Case, models: Path, folder: Path) -> dict[str, str]:
    """What was seen in an environment, its versions first; raises SubprocessError where pip fails."""
    venv.EnvBuilder(clear=True, symlinks=os.name != "nt", with_pip=True).create(folder)
    python = str(folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python"))
    before = ""
    if case.before:
        _install(python, *case.before)
        before = _state(python)
    _install(python, *HOST, *case.beside, "-r", str(PACK / "requirements.txt"))
    if case.after:
        _install(python, *case.after)
    scratch = folder / "scratch"
    scratch.mkdir()
    check = ["--inside", "bench", "environments", "--check", str(models), str(scratch)]
    lines = _out(python, str(PACK / "run.py"), *check).splitlines()
    findings = dict(json.loads(line) for line in lines if line.startswith("["))
    if before:
        after = _state(python)
        findings[KEPT] = YES if after == before else f"before {before}, then {after}"
    return {"versions": ", ".join(_out(python, "-c", REPORT, *VERSIONS).splitlines()), **findings}


def _state(python: str) -> str:
    """Versions and devices of what other packs share with this one."""
    return _out(python, "-c", STATE).strip()


def _install(python: str, *packages: str) -> None:
    settings = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-compile", "--only-binary", ":all:"]
    _out(python, "-m", "pip", "install", *settings, *packages)


def _out(*command: str) -> str:
    """What a command prints. Raises SubprocessError."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=True)  # noqa: S603
    return done.stdout


def _write_models(folder: Path) -> None:
    """A small checkpoint of each family, with the published ones' names of tensors in CLIP's encoders.

    Wan's text encoder holds its embedding once, and its configuration denies that, as the published one does.
    """
    from ..pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
    from ..pipeline.dummies.svd import write_tiny_svd
    from ..pipeline.dummies.wan import write_tiny_wan

    for name, write in zip(MODELS.values(), (write_tiny_checkpoint, write_tiny_svd, write_tiny_wan), strict=True):
        write(folder / name)
    for path, prefix in NAMED.items():
        _name_as_published(folder / path / "model.safetensors", prefix)
    config = folder / MODELS["Wan 2.1"] / "text_encoder" / "config.json"
    described = {**json.loads(config.read_text("utf-8")), "tie_word_embeddings": False}
    write_text(config, json.dumps(described))


def _name_as_published(path: Path, prefix: str) -> None:
    """Puts before each tensor's name what transformers before 5.6 did."""
    from safetensors.torch import load_file, save_file

    tensors = {f"{prefix}{name}": tensor.clone() for name, tensor in load_file(path).items()}
    save_file(tensors, path, {"format": "pt"})
