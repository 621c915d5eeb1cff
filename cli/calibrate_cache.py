"""`run.py calibrate-cache`: the ratios of a checkpoint's residuals, for the step cache by magnitudes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.device import default_device
from ..common.errors import I2VError
from ..common.pack_paths import BUNDLED, PICTURE
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..engine_builder.store.store import EngineStore
from ..pipeline.acceleration.magnitudes import magnitudes_file, write_magnitudes
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.models.registry import open_model
from ..runtime.acceleration import magnitudes_folder, weights_sha256
from ..runtime.cache_calibration import MagnitudeOrder, measure_magnitudes
from ..runtime.calibration import read_calibration_data
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from ..runtime.engines.presets import parse_presets
from .engine_command import default_store


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    top = argparse.ArgumentParser("run.py calibrate-cache", description=__doc__)
    add = top.add_argument
    add("model", type=Path, nargs="?", default=BUNDLED, metavar="MODEL", help="the checkpoint's folder")
    add("--picture", type=Path, action="append", default=[], metavar="PATH", help="a picture or a folder of them")
    add("--prompt", action="append", default=[], metavar="TEXT", help="what the pictures do; may be given again")
    add("--size", default="128x128x16", metavar="WxHxF", help="of the clips (%(default)s)")
    add("--steps", type=int, default=50, metavar="N")
    add("--guidance", type=float, default=3.0, metavar="X")
    add("--scheduler", metavar="NAME", help="the model's first if none")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--store", type=Path, default=default_store(), metavar="DIR", help="the engines; the ratios lie beside them")
    add("--out", type=Path, metavar="DIR", help="the ratios' folder, in place of that one")
    return top


def main(argv: Sequence[str]) -> int:
    """Measures and keeps the ratios; 0, or 1 after one sentence on the error."""
    options = parser().parse_args(argv)
    try:
        model, store = open_model(options.model), EngineStore(options.store)
        engines = EngineSet(model, store, EnginePolicy(options.backend, shapes="exact"), default_device())
        scheduler = options.scheduler or model.schedulers[0]
        pictures = read_calibration_data(options.picture or [PICTURE], options.prompt)
        settings = SamplerSettings(options.steps, scheduler)
        order = MagnitudeOrder(pictures, parse_presets(options.size)[0], settings, options.guidance)
        found = measure_magnitudes(engines, order, _tell)
        path = magnitudes_file(options.out or magnitudes_folder(store), weights_sha256(model))
        write_magnitudes(found, path)
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py calibrate-cache: {error}\n")
        return 1
    least, most = min(found.ratios[1:], default=1.0), max(found.ratios[1:], default=1.0)
    sys.stdout.write(f"{len(found.ratios)} ratios from {least:.3f} to {most:.3f} of {found.clips} clips: {path}\n")
    return 0


def _tell(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
