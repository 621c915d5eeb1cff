"""Custom nodes for the tests: steps to watch, interrupt and fail; the models in memory; a comparison of frames; what
an encoder of billions of weights would give.

ComfyUI loads this file; nothing else imports it.
"""

import time
from types import SimpleNamespace
from typing import Any

import comfy.controlnet  # pyright: ignore[reportMissingImports]
import comfy.model_management  # pyright: ignore[reportMissingImports]
import comfy.utils  # pyright: ignore[reportMissingImports]
import torch
from comfy_execution.graph_utils import GraphBuilder  # pyright: ignore[reportMissingImports]
from PIL import Image

STEP_S = 0.01


class Probe:
    CATEGORY = "tests"
    FUNCTION = "run"
    RETURN_TYPES: tuple[str, ...] = ()


class Telling(Probe):
    """One that tells something of a run, and is never taken from the cache."""

    OUTPUT_NODE = True

    @classmethod
    def IS_CHANGED(cls, **_: object) -> float:
        return float("nan")


class ProbeSteps(Telling):
    """Takes `steps` steps, each with a progress report and a preview; fails before step `fails_at`."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        steps = ("INT", {"default": 3, "min": 1, "max": 1000})
        fails_at = ("INT", {"default": -1, "min": -1, "max": 1000})
        return {"required": {"steps": steps, "fails_at": fails_at}}

    def run(self, steps: int, fails_at: int) -> dict:
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            if step == fails_at:
                raise ValueError(f"the probe fails at step {step}")
            time.sleep(STEP_S)
            preview = Image.new("RGB", (16, 8), (step % 256, 0, 0))
            bar.update_absolute(step + 1, steps, ("PNG", preview, None))
        return {"ui": {"steps": [steps]}}


class ProbeSound(Probe):
    """Sound of any shape and kind; with `broken`, one whose file fails as it is read."""

    RETURN_TYPES = ("AUDIO",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        number = ("INT", {"default": 1, "min": 0, "max": 1 << 20})
        return {"required": {"channels": number, "samples": number, "dtype": ("STRING", {}), "broken": ("BOOLEAN", {})}}

    def run(self, channels: int, samples: int, dtype: str, broken: bool) -> tuple:
        waveform = torch.ones(1, channels, samples, dtype=getattr(torch, dtype))
        return ({} if broken else {"waveform": waveform, "sample_rate": 8000},)


class ProbeModels(Telling):
    """Tells what ComfyUI's memory manager holds: the models' class names, and their bytes together."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}, "optional": {"after": ("IMAGE",)}}

    def run(self, after: object = None) -> dict:
        held = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
        names = [type(patcher.model).__name__ for patcher in held]
        return {"ui": {"models": names, "bytes": [sum(patcher.loaded_size() for patcher in held)]}}


class ProbeLatents(Probe):
    """Latents as if they were frames, to be compared."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"samples": ("LATENT",)}}

    def run(self, samples: dict) -> tuple:
        return (samples["samples"].float().cpu().reshape(1, 1, -1, 1),)


class ProbeDifference(Telling):
    """Tells by how much two batches of frames differ at most, and between which values the first lies."""

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"a": ("IMAGE",), "b": ("IMAGE",)}}

    def run(self, a: torch.Tensor, b: torch.Tensor) -> dict:
        return {
            "ui": {
                "shapes": [list(a.shape), list(b.shape)],
                "difference": [float((a - b).abs().max())],
                "range": [float(a.min()), float(a.max())],
                "mse": [float((a.double() - b.double()).square().mean())],
                "std": [float(a.std())],
            }
        }


class ProbeConditioning(Probe):
    """Random conditioning of `tokens` by `width`, the last of them padding, and one vector of the whole text.

    Of a picture: tokens of CLIP's, latents beside the noise.
    """

    RETURN_TYPES = ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        number = ("INT", {"default": 0, "min": 0, "max": 1 << 20})
        more = {"picture_tokens": number, "latent": ("LATENT",), "pooled": number, "padding": number}
        return {"required": {"tokens": number, "width": number, "seed": number}, "optional": more}

    def run(
        self,
        tokens: int,
        width: int,
        seed: int,
        picture_tokens: int = 0,
        latent: dict | None = None,
        pooled: int = 0,
        padding: int = 0,
    ) -> tuple:
        generator = torch.Generator().manual_seed(seed)
        more: dict = {}
        if picture_tokens:
            hidden = torch.randn(1, picture_tokens, 1280, generator=generator)
            more["clip_vision_output"] = SimpleNamespace(penultimate_hidden_states=hidden)
        if pooled:
            more["pooled_output"] = torch.randn(1, pooled, generator=generator)
        if padding:
            more["attention_mask"] = (torch.arange(tokens) < tokens - padding).long()[None]
        if latent is not None:
            more["concat_latent_image"] = torch.randn(latent["samples"][:1].shape, generator=generator)
        return ([[torch.randn(1, tokens, width, generator=generator), more]],)


class ProbeBlockPatch(Probe):
    """Another pack's patch of a whole block: calls it, and takes a share of what it adds."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",), "share": ("FLOAT", {"default": 0.5})}}

    def run(self, model: Any, share: float) -> tuple:
        def patch(given: dict, around: dict) -> dict:
            found = around["original_block"](given)
            return {**found, "img": given["img"] + share * (found["img"] - given["img"])}

        clone = model.clone()
        clone.set_model_patch_replace(patch, "dit", "double_block", 0)
        return (clone,)


class DequantizedAsCalled(torch.nn.Linear):
    """Another pack's linear layer, over whole numbers with a scale a row, made plain whenever it is called."""

    def __init__(self, linear: Any) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        weight = linear.weight.detach().float()
        self.scale = weight.abs().amax(dim=1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = linear.bias

    def cast_bias_weight(self, dtype: Any = None, device: Any = None, bias_dtype: Any = None) -> tuple:
        weight = self.weight.to(device, dtype) * self.scale.to(device, dtype)
        return weight, self.bias.to(device, bias_dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(input, *self.cast_bias_weight(input.dtype, input.device, input.dtype))


class ProbeForeignLayers(Probe):
    """Gives the blocks of a model that layer, once."""

    RETURN_TYPES = ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"model": ("MODEL",)}}

    def run(self, model: Any) -> tuple:
        for block in model.model.diffusion_model.blocks:
            for name, layer in [*block.named_modules()]:
                if isinstance(layer, torch.nn.Linear):
                    outer, _, last = name.rpartition(".")
                    setattr(block.get_submodule(outer), last, DequantizedAsCalled(layer))
        return (model,)


class ProbeControl(Probe):
    """Puts a control beside conditioning that adds nothing to it."""

    RETURN_TYPES = ("CONDITIONING",)

    class Control(comfy.controlnet.ControlBase):
        def get_control(self, *_: object) -> dict:
            return {"input": [], "middle": [], "output": []}

        def copy(self) -> "ProbeControl.Control":
            return self

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"conditioning": ("CONDITIONING",)}}

    def run(self, conditioning: list) -> tuple:
        return ([[tokens, {**more, "control": self.Control()}] for tokens, more in conditioning],)


class ProbeAgain(Probe):
    """Runs the node behind its input once more with another seed, as nodes for loops do.

    ComfyUI gives the copy an id that no workflow has, and shows it as the node that it is a copy of.
    """

    RETURN_TYPES = ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"of": ("LATENT", {"rawLink": True})}, "hidden": {"graph": "DYNPROMPT"}}

    def run(self, of: list, graph: Any) -> dict:
        name, output = of
        original, made = graph.get_node(name), GraphBuilder()
        copy = made.node(original["class_type"], "again", **{**original["inputs"], "seed": 1000})
        copy.set_override_display_id(name)
        return {"result": (copy.out(output),), "expand": made.finalize()}


NODES = (
    ProbeSteps,
    ProbeAgain,
    ProbeSound,
    ProbeModels,
    ProbeDifference,
    ProbeLatents,
    ProbeConditioning,
    ProbeControl,
    ProbeBlockPatch,
    ProbeForeignLayers,
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in NODES}
