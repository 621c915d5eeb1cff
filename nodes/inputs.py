"""The sockets' types of our own, and the words that several nodes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
from comfy_api.latest import io

from ..common.errors import I2VError, InputError
from ..common.spec import PRECISIONS, QUANTIZED
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..pipeline.conditioning import Conditioning as Encoded
from ..pipeline.models.base import VideoModel
from ..pipeline.request import ClipSize
from ..runtime.devices.second_gpu import DEVICES
from ..runtime.engines.policy import MISS_POLICIES, PRESETS, SHAPE_POLICIES, WEIGHT_PLACES
from ..runtime.engines.presets import parse_presets

Model = io.Custom("I2V_MODEL")
"""Carries a `runtime.engines.engine_set.EngineSet`: a checkpoint and the policy by which its engines are found."""

Conditioning = io.Custom("I2V_CONDITIONING")
"""Carries a `pipeline.conditioning.Conditioning`."""

CATEGORY = "I2V TensorRT"
PRECISION_NAMES = [AUTO, *PRECISIONS]


Given = TypeVar("Given", bound=io.Input)


def advanced(given: Given) -> Given:
    """The input, which the page keeps folded away where it can; older hosts have no argument for that."""
    given.extra_dict = {**given.extra_dict, "advanced": True}
    return given


def on_missing_input() -> io.Combo.Input:
    """The policy where no engine fits."""
    return io.Combo.Input(
        "on_missing",
        options=list(MISS_POLICIES),
        default=AUTO,
        tooltip="No engine fits. auto: on a GPU run eager PyTorch now and build the engine while the queue is empty; "
        "on a CPU, where it saves little, run eager. build: one now. eager: PyTorch with a warning. stop: an error.",
    )


def shape_policy_input(default: str = "range", options: Sequence[str] = SHAPE_POLICIES) -> io.Combo.Input:
    """The sizes that a new engine serves."""
    presets = " presets: one for the sizes in presets alone, each as fast." if PRESETS in options else ""
    return io.Combo.Input(
        "shape_policy",
        options=list(options),
        default=default,
        tooltip="For engines built here. range: one for every size, tuned for the one asked for. exact: for that "
        f"size alone, faster and quicker to build.{presets}",
    )


def presets_input() -> io.String.Input:
    """The sizes for the shape policy of that name."""
    return io.String.Input(
        "presets",
        default="512x512x16, 1280x704x16",
        optional=True,
        tooltip="For the shape policy presets: width x height x frames of each, by commas. Nothing is padded to them.",
    )


def presets_of(shape_policy: str, presets: str) -> tuple[ClipSize, ...]:
    """The sizes in the widget where the policy asks for them; raises InputError for a text that is no size."""
    return parse_presets(presets) if shape_policy == PRESETS else ()


def precision_input() -> io.Combo.Input:
    """The precision of engines."""
    return io.Combo.Input(
        "precision",
        options=[*PRECISION_NAMES, *QUANTIZED],
        default=AUTO,
        tooltip="auto: fp16 on a CUDA GPU, else fp32. fp8 for Wan by inductor: the denoiser's products in fp8, in half "
        "the memory and seven tenths of the time, near but not equal. int8, fp8 by TensorRT: of the denoiser alone, "
        "with scales that the Engine Builder takes from pictures. The rest is fp16.",
    )


def backend_input() -> io.Combo.Input:
    """The backend of engines."""
    return io.Combo.Input(
        "backend",
        options=[AUTO, *BACKENDS],
        default=AUTO,
        tooltip="auto: the fastest that is installed. tensorrt: NVIDIA GPUs. inductor: PyTorch's own compiler, for "
        "any CUDA GPU or CPU, with a C++ compiler on the machine. onnxruntime: builds in seconds. eager: nothing to "
        "build, slower.",
    )


def weights_input() -> io.Combo.Input:
    """The place of the weights of new engines."""
    return advanced(
        io.Combo.Input(
            "weights",
            options=list(WEIGHT_PLACES),
            default=AUTO,
            optional=True,
            tooltip="outside: the engine holds none and is given the checkpoint's, so that one serves every fine-tune "
            "and LoRA. inside: each checkpoint has its own. auto: outside with tensorrt, unless the GPU is too small "
            "for them, inside with onnxruntime, where that is faster.",
        )
    )


def devices_input() -> io.Combo.Input:
    """The number of GPUs that share a clip."""
    return advanced(
        io.Combo.Input(
            "devices",
            options=list(DEVICES),
            default=AUTO,
            optional=True,
            tooltip="2: two equal GPUs share each step: with guidance a branch each; of Wan without guidance, on "
            "Linux, half of the picture's tokens each. auto: 1, for 2 has not been measured on GPUs yet.",
        )
    )


Execute = Callable[..., io.NodeOutput]


JSON_TYPES = (str, int, float, list, dict, type(None))
"""What a request can put in the place of a link."""


def _came_over_a_link(value: object, kind: type | tuple[type, ...]) -> bool:
    return not isinstance(value, JSON_TYPES) if kind is object else isinstance(value, kind)


def sockets(**kinds: type | tuple[type, ...]) -> Callable[[Execute], Execute]:
    """Decorator of `execute` that checks the inputs of those names, since ComfyUI takes any JSON in place of a link.

    The kind `object` is for what other packs give, of any class. ComfyUI also passes links to inputs that a node does
    not have, which are refused.
    """

    def decorate(execute: Execute) -> Execute:
        known = [name for name in signature(execute).parameters if name != "cls"]

        @wraps(execute)
        def checked(cls: type[io.ComfyNode], **inputs: Any) -> io.NodeOutput:
            for name in inputs:
                if name not in known:
                    wanted = f"inputs among {', '.join(known)}" if known else "no inputs"
                    raise InputError(f"Expected {wanted}, found {name!r:.60}.")
            for name, kind in kinds.items():
                value = inputs.get(name)
                if not _came_over_a_link(value, kind):
                    found = repr(value)[:60] if isinstance(value, str | int | float) else f"a {type(value).__name__}"
                    raise InputError(f"Expected {name} over a link from a node that gives it, found {found}.")
            return execute(cls, **inputs)

        return checked

    return decorate


DECODER_INPUTS = "i2v_decoder_inputs"
"""What a LATENT carries beside its samples for a decoder that needs more, by name; the core's nodes hand it on."""


def latent_of(samples: torch.Tensor, model: VideoModel, conditioning: Encoded) -> dict[str, Any]:
    """A LATENT with what the model's decoder needs of the clip's conditioning."""
    more = {name: conditioning.tensors[name] for name in model.decoder_inputs}
    return {"samples": samples, **({DECODER_INPUTS: more} if more else {})}


def decoder_inputs_of(latents: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """What a LATENT carries for the decoder; nothing where another node has made it."""
    found = latents.get(DECODER_INPUTS)
    if not isinstance(found, Mapping):
        return {}
    return {name: tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}


def samples_of(latents: Mapping[str, Any]) -> torch.Tensor:
    """The tensor of a LATENT; raises InputError for one without."""
    samples = latents.get("samples")
    if not isinstance(samples, torch.Tensor):
        raise InputError(f"Expected latents as a tensor, found {type(samples).__name__}.")
    return samples


def verdict(check: Callable[[], object]) -> bool | str:
    """Answer of `validate_inputs`: True, or the sentence with which the check refused."""
    try:
        check()
    except I2VError as error:
        return str(error)
    return True
