"""I2V LoRA."""

from __future__ import annotations

import hashlib
from typing import Any

from comfy_api.latest import io

from ..common.errors import I2VError, InputError
from ..pipeline.models.base import VideoModel
from ..pipeline.models.model_networks import reading_note
from ..runtime.engines.engine_set import EngineSet
from .host import folders, ui
from .host.engine_sets import remade
from .inputs import CATEGORY, Model, sockets, verdict
from .model_loader import reading

NONE = "put a LoRA into models/loras"
BOTH, HIGH, LOW = EXPERTS = ("both", "high noise", "low noise")
MOST_STRENGTH = 10.0


class LoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_LoRA",
            display_name="I2V LoRA",
            category=CATEGORY,
            description="Merges a LoRA from models/loras into a model's weights. Several of these nodes in a row add "
            "up, before an Engine Loader or after it. Tensors for an encoder that the model does not have are left "
            "out; other tensors that do not fit are refused, with their names.",
            search_aliases=[
                "load lora",
                "lora loader",
                "lycoris",
                "lokr",
                "loha",
                "dora",
                "lightx2v",
                "distill",
                "4 steps",
            ],
            inputs=[
                Model.Input("model", tooltip="From the I2V Model Loader, the I2V Engine Loader or another I2V LoRA."),
                io.Combo.Input(
                    "lora",
                    options=sorted(folders.loras()) or [NONE],
                    tooltip="A .safetensors file of LoRA, LoCon, LoHa, LoKr, GLoRA, OFT, DoRA or differences, with "
                    "the names of diffusers, PEFT, Kohya's trainers, LyCORIS or Wan's publishers.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-MOST_STRENGTH,
                    max=MOST_STRENGTH,
                    step=0.05,
                    tooltip="How much of it is added: 1 as it was trained, 0 nothing, below 0 the opposite.",
                ),
                io.Combo.Input(
                    "expert",
                    options=list(EXPERTS),
                    default=BOTH,
                    optional=True,
                    tooltip="Of a model with two experts, such as Wan 2.2 A14B, the one that it was trained for. Other "
                    "models have one network: leave both.",
                ),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The same model with the LoRA.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, lora: Any = None) -> bool | str:
        return True if lora is None else verdict(lambda: folders.lora_file(lora))

    @classmethod
    def fingerprint_inputs(cls, lora: str, **others: Any) -> Any:
        """Changes with the file; a digest, since ComfyUI embeds it in saved files."""
        try:
            stat = folders.lora_file(lora).stat()
        except (OSError, I2VError):
            return float("nan")
        return hashlib.sha256(repr((lora, stat.st_size, stat.st_mtime_ns)).encode()).hexdigest()

    @classmethod
    @sockets(model=EngineSet)
    def execute(cls, model: EngineSet, lora: str, strength: float = 1.0, expert: str = BOTH) -> io.NodeOutput:
        with ui.sentences():
            denoisers = denoisers_of(model.model, expert)
            adapted = model.model.with_adapter(folders.lora_file(lora), strength, denoisers)
            adapted.take_digests(reading(cls.hidden.unique_id))
            engines = remade(model, adapted)
            note = reading_note(adapted)
            line = "\n".join([adapted.adapters[-1].summary, *([note] if note else []), engines.summary()])
        ui.say(cls.hidden.unique_id, line)
        return io.NodeOutput(engines, ui=ui.text_ui([line]))


def denoisers_of(model: VideoModel, expert: object) -> tuple[str, ...]:
    """The components of an expert's name; raises InputError where the model has no such expert."""
    if expert not in EXPERTS:
        raise InputError(f"The expert is one of {', '.join(EXPERTS)}, found {expert!r:.80}.")
    if expert == BOTH:
        return ()
    if len(model.denoisers) == 1:
        raise InputError(f"{model.title} has one network and no experts: expected {BOTH}, found {expert}.")
    return model.denoisers[:1] if expert == HIGH else model.denoisers[1:]
