"""What runs in the Python environment at hand: each check is a sentence, `yes` where all is well.

Nothing heavy is imported before its check begins, so that a broken package spoils its own checks alone.
"""

from __future__ import annotations

import ast
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from ..common.errors import I2VError
from ..common.pack_paths import PACK

YES, NONE = "yes", ""
MODELS = {"I2VGen-XL": "i2vgen_xl", "SVD": "svd", "Wan 2.1": "wan"}
"""The folder of each family's small checkpoint, by its title."""
PROVIDERS = "ONNX Runtime's providers"
AS_IT_IS = ("versions", PROVIDERS)
"""Columns whose results stand in the table itself."""
FORMATS = ("mp4-h264", "webm-vp9", "mkv-ffv1", "webp", "gif")
SIDE, FRAMES, FPS = 64, 5, 8
FREE_BYTES = 1 << 30
LONGEST = 300


def checks(models: Path, scratch: Path) -> dict[str, Callable[[], str]]:
    """Every check by its name; `models` has the small checkpoints, `scratch` takes the videos."""
    found: dict[str, Callable[[], str]] = {"pack loads": _loads, "Engine Doctor": _doctor}
    found |= {f"clip of {title}": partial(_clip, models / name, scratch) for title, name in MODELS.items()}
    found |= {name: partial(_video, name, scratch) for name in FORMATS}
    return {**found, PROVIDERS: providers}


def run_checks(models: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    """Name and finding of each check, as it ends."""
    warnings.simplefilter("ignore")
    for name, check in checks(models, scratch).items():
        yield name, finding(check)


def finding(check: Callable[[], str]) -> str:
    """What a check gives, the sentence of an error of ours, or the class and the text of another one."""
    try:
        return check()
    except I2VError as error:
        words = str(error)
    except Exception as error:
        words = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return words.replace(sys.prefix, "")[:LONGEST]


def _loads() -> str:
    """Imports what the nodes import of the pack, in the place of ComfyUI, which loads them."""
    for path in sorted((PACK / "nodes").rglob("*.py")):
        package = path.relative_to(PACK).parent.parts
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.level > len(package):
                importlib.import_module(f"..{node.module}", __package__)
    return YES


def _doctor() -> str:
    """Has the Engine Doctor look at everything."""
    import torch

    from ..runtime.tools.doctor import diagnose

    return YES if diagnose(torch.device("cpu")).line.startswith("auto takes ") else "no backend"


def _clip(folder: Path, scratch: Path) -> str:
    """Makes a clip of a small checkpoint in eager PyTorch, from picture to frames."""
    import torch
    from PIL import Image

    from ..engine_builder.store.store import EngineStore
    from ..pipeline.decode import chunk_size
    from ..pipeline.denoising.schedulers import SamplerSettings
    from ..pipeline.models.registry import open_model
    from ..pipeline.request import ClipRequest, ClipSize
    from ..pipeline.tensor_cache import ConditioningCache
    from ..runtime.clip import decode_clip, encode_clip, sample_clip
    from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
    from ..runtime.engines.engine_set import EngineSet
    from ..runtime.engines.policy import EnginePolicy

    model = open_model(folder)
    policy = EnginePolicy("eager", on_missing="eager")
    engines = EngineSet(model, EngineStore(scratch / "engines"), policy, torch.device("cpu"))
    plan = plan_clip(engines, ClipSize(SIDE, SIDE, FRAMES))
    picture = Image.linear_gradient("L").resize((SIDE, SIDE)).convert("RGB")
    request = ClipRequest(picture, "a lake", "", SIDE, SIDE, FRAMES, FPS)
    cache = ConditioningCache(scratch / f"conditioning-{folder.name}")
    conditioning = encode_clip(plan, request, cache, _ignore)
    settings = SamplerSettings(2, scheduler=model.schedulers[0])
    sampling = plan_sampling(plan, Denoising(1, 3.0, settings))
    latents = sample_clip(sampling, conditioning, _ignore)
    frames = decode_clip(plan, latents, chunk_size(FREE_BYTES, SIDE, SIDE, FRAMES), _ignore)
    return YES if frames.shape == (FRAMES, SIDE, SIDE, 3) and float(frames.std()) > 0 else f"frames {frames.shape}"


def _video(format_name: str, scratch: Path) -> str:
    """Writes a file of the format."""
    import torch

    from ..pipeline.media.formats import VideoOptions
    from ..pipeline.media.video import write_video

    path = scratch / f"video.{format_name.partition('-')[0]}"
    info = write_video(torch.rand(FRAMES, SIDE, SIDE, 3), path, VideoOptions(format_name, float(FPS)))
    return YES if info.size_bytes else "an empty file"


def providers() -> str:
    """What ONNX Runtime can compute with."""
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        return "none: not installed"
    return ", ".join(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers())


def _ignore(*_: object) -> None:
    """Ignores progress."""


def table(found: Mapping[str, Mapping[str, str]]) -> list[str]:
    """Rows in Markdown: an environment each, a check each column; what does not run stands below with its words."""
    columns = list(dict.fromkeys(name for results in found.values() for name in results))
    rows = [f"| environment | {' | '.join(columns)} |", f"| --- | {' | '.join('---' for _ in columns)} |"]
    words: dict[str, int] = {}
    for name, results in found.items():
        cells = [_cell(column, results.get(column, NONE), words) for column in columns]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return [*rows, "", *(f"{number}. {text}" for text, number in words.items())]


def _cell(column: str, result: str, words: dict[str, int]) -> str:
    """A short result, or the number of a longer one among the words below the table."""
    if result in (YES, NONE) or column in AS_IT_IS:
        return result
    return f"no ({words.setdefault(result, len(words) + 1)})"
