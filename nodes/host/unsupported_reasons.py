"""Reasons why an engine cannot replace the network of a ComfyUI MODEL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

OUTSIDE = {
    "cond_or_uncond",
    "uuids",
    "sigmas",
    "sample_sigmas",
    "callbacks",
    "prefetch_dynamic_vbars",
    "original_shape",
    "transformer_index",
    "total_blocks",
    "block",
    "block_index",
    "block_type",
    "img_slice",
    "grid_sizes",
    "activations_shape",
    "easycache",
    "multigpu_thread_device",
}
"""Options that a network reads or writes without an effect on its result."""
WRAPPERS = {kind for name, kind in vars(WrappersMP).items() if name.isupper() and isinstance(kind, str)}
"""The kinds of wrappers that ComfyUI has: all of them are outside the network."""
READ_BEFORE_BLOCKS = {"rope_options", "patches", "patches_replace"}
"""Options that a transformer reads before it calls its blocks, or whose kinds tell where it reads them."""
AROUND_BLOCKS = {"double_block", "single_block", "post_input"}
"""The kinds of patches that ComfyUI's transformers call between their blocks."""
COMPILED_OPTION = "torch_compile_kwargs"
"""What ComfyUI notes in the options of a model that `torch.compile` is to compile."""
Layers = list[tuple[str, torch.nn.Module]]
"""A network's layers, with their names."""


def layers_of(patcher: ModelPatcher) -> Layers:
    """The layers of the model's network."""
    return list(patcher.model.diffusion_model.named_modules())


def unsupported_reasons(
    patcher: ModelPatcher, layers: Layers, options: Mapping[str, Any], control: object, device: torch.device
) -> Iterator[str]:
    """Reasons why the network has additions inside, or its weights cannot be used in place: a sentence each."""
    if control is not None:
        yield "Expected no control, found one, such as a ControlNet's."
    yield from _patches(options)
    if patcher.current_hooks is not None:
        yield "Expected no hooks on the weights, found some."
    patched = [name for name in patcher.object_patches if name.startswith("diffusion_model")]
    if patched:
        yield f"Expected the network's own parts, found another {patched[0]}."
    if patcher.injections:
        yield f"Expected nothing injected, found {', '.join(map(str, patcher.injections))}."
    yield from unsupported_weights(layers, device)


def _patches(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if name == "wrappers":
            strange = [kind for kind, each in value.items() if kind not in WRAPPERS and any(each.values())]
            if strange:
                yield f"Expected wrappers outside the network, found {strange[0]}."
        elif name not in OUTSIDE and _is_set(value):
            inner = f" ({', '.join(map(str, value))})" if isinstance(value, Mapping) else ""
            yield f"Expected no patches in the network, found {name}{inner}."


def patches_inside_blocks(options: Mapping[str, Any]) -> Iterator[str]:
    """Reasons why a transformer's block has additions inside: a sentence each.

    Patches that replace a whole block call it themselves, or not at all.
    """
    inner = {name: value for name, value in options.items() if name not in READ_BEFORE_BLOCKS}
    inner["patches"] = {kind: each for kind, each in options.get("patches", {}).items() if kind not in AROUND_BLOCKS}
    replaced = options.get("patches_replace", {})
    inner["patches_replace"] = {kind: each for kind, each in replaced.items() if kind != "dit" or not _are_blocks(each)}
    yield from _patches(inner)


def _are_blocks(patches: Mapping[Any, Any]) -> bool:
    """Whether patches replace whole blocks: their keys are a kind of block and its number."""
    return all(isinstance(key, tuple) and str(key[0]).endswith("block") for key in patches)


def _is_set(value: Any) -> bool:
    """Whether an option has a value; True for an object of unknown kind."""
    return bool(value) if isinstance(value, bool | int | float | str | list | tuple | dict) else value is not None


def is_hooked(layer: torch.nn.Module) -> bool:
    """Whether something is called with the layer, or in the place of its own function."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))


def unsupported_weights(layers: Layers, device: torch.device) -> Iterator[str]:
    """Reasons why the layers' weights cannot be used in place: a sentence each."""
    elsewhere = False
    for name, layer in layers:
        own = vars(layer)
        if getattr(layer, "weight_function", None) or getattr(layer, "bias_function", None) or "_v" in own:
            yield "Expected weights that are loaded whole, found some that are patched or brought in as they are used."
        if is_hooked(layer):
            yield f"Expected the network's own layers, found a hook on {name or 'it'}."
        elsewhere |= any(weight is not None and weight.device != device for weight in layer._parameters.values())
    if elsewhere:
        yield f"Expected all weights on {device}, found some elsewhere: the model is too large to be loaded whole."


def compiled_elsewhere(patcher: ModelPatcher) -> str | None:
    """The reason to leave a model alone that another node compiles; None for one that nobody does."""
    if COMPILED_OPTION not in patcher.model_options:
        return None
    return "torch.compile is on this model too, and compiles it: take that node or this one away."


def is_copy(model: ModelPatcher) -> bool:
    """Whether the model is the core's copy of a sampled one for another GPU."""
    return bool(getattr(model, "is_multigpu_base_clone", False))


def other_network(sampled: ModelPatcher | None) -> str:
    """Reason for a call of another network than that of the model that is sampled."""
    copies = [] if sampled is None else getattr(sampled, "additional_models", {}).get("multigpu", [])
    if copies:
        return "Engines serve the first GPU alone: the model's copies on other GPUs run as they are."
    return "Expected the network of the model that is sampled, found another one."


def is_dynamic(model: ModelPatcher) -> bool:
    """Whether ComfyUI brings the model's weights in as they are used; older ones never do."""
    return bool(getattr(model, "is_dynamic", bool)())


def no_way(network: torch.nn.Module) -> str:
    """The reason why a network as a whole is not replaced that ComfyUI calls without a wrapper."""
    return f"ComfyUI gives no way to wrap {type(network).__name__}."
