"""I2V Model Loader."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..common.errors import I2VError
from ..engine_builder.backends.eager import EagerBackend
from ..pipeline.models.registry import open_model
from ..pipeline.models.single_files import Sources
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .host import checkpoints, folders, memory, ui
from .inputs import CATEGORY, PRECISION_NAMES, Model, sockets, verdict

NONE = "put a checkpoint into models/i2v"


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_ModelLoader",
            display_name="I2V Model Loader",
            category=CATEGORY,
            description="Opens a picture-to-video model: a folder in diffusers' layout from models/i2v, or a single "
            "file of Wan or SVD. Without an Engine Loader behind it, the model runs in eager PyTorch.",
            search_aliases=[
                "i2vgen-xl",
                "stable video diffusion",
                "svd",
                "wan",
                "dynamicrafter",
                "image to video",
                "load video model",
            ],
            inputs=[
                io.Combo.Input(
                    "checkpoint",
                    options=[*sorted(checkpoints.checkpoints()), *sorted(checkpoints.single_files())] or [NONE],
                    tooltip="A folder with a model_index.json, such as the published ali-vilab/i2vgen-xl. Below them "
                    "stand single files: the text encoder, the VAE and CLIP vision are found in ComfyUI's folders by "
                    "what they hold.",
                ),
                io.Combo.Input(
                    "precision",
                    options=PRECISION_NAMES,
                    default="auto",
                    optional=True,
                    tooltip="auto: fp16 on a CUDA GPU, fp32 elsewhere.",
                ),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The model, in eager PyTorch.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, checkpoint: Any = None) -> bool | str:
        return True if checkpoint is None else verdict(lambda: checkpoints.checkpoint(checkpoint))

    @classmethod
    def fingerprint_inputs(cls, checkpoint: str, precision: str = "auto") -> Any:
        """Changes with any file of the checkpoint; a digest, since ComfyUI embeds it in saved files."""
        try:
            files = checkpoints.checkpoint_files(checkpoints.checkpoint(checkpoint))
            stats = [(str(path), stat_of(path)) for path in files]
        except (OSError, I2VError):
            return float("nan")
        content = [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]
        return hashlib.sha256(repr((precision, content)).encode()).hexdigest()

    @classmethod
    @sockets()
    def execute(cls, checkpoint: str, precision: str = "auto") -> io.NodeOutput:
        with ui.sentences():
            found = checkpoints.checkpoint(checkpoint)
            model = open_model(checkpoints.checkpoint_folder(found))
            model.take_digests(reading(cls.hidden.unique_id))
            policy = EnginePolicy(EagerBackend.name, memory.fitting_precision(precision), on_missing="eager")
            engines = EngineSet(model, folders.engine_store(), policy, memory.device(), memory.HostMemoryManager())
        taken = found.lines if isinstance(found, Sources) else []
        lines = [f"{model.family}, {engines.precision} on {engines.device}", *taken, *model.hints]
        ui.say(cls.hidden.unique_id, "\n".join(lines))
        return io.NodeOutput(engines, ui=ui.text_ui(lines))


def stat_of(path: Path) -> os.stat_result:
    """What the file system says of a file, or of a link that leads nowhere."""
    return path.stat() if path.exists() else path.lstat()


def reading(node_id: str | None) -> Callable[[float], None]:
    """A report of the reading of weights on a node; lets an interruption through."""
    progress = ui.Progress(node_id, 100)

    def report(done: float) -> None:
        progress.step(round(100 * done), 100)
        progress.say(f"reading checkpoint {done:.0%}")

    return report
