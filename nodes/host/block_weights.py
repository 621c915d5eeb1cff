"""A block's weights in the state in which its layers use them: cast, dequantized, patched, brought to the device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import comfy.model_management as memory
import comfy.ops
import torch

from .unsupported_reasons import is_hooked

PATCHED = ("weight", "bias")
"""The weights of a layer that ComfyUI casts, moves and patches as the layer is called."""
FP8_LAYOUT = "TensorCoreFP8E4M3Layout"
"""ComfyUI's name for weights in e4m3 with one scale."""
SCALES = ("weight_scale", "input_scale")
OWN_CAST = "cast_bias_weight"
"""The method by which layers of other packs give these weights, as those of GGUF files do."""


def unsupported_layers(block: torch.nn.Module) -> Iterator[str]:
    """Reasons why the block's layers cannot be replaced by an engine that is given their weights: a sentence each."""
    for name, layer in block.named_modules():
        kind = type(layer)
        known = kind.__module__.startswith(("comfy.", "torch.")) or hasattr(layer, OWN_CAST)
        if not known:
            yield f"Expected layers of ComfyUI's core, found {kind.__module__}.{kind.__qualname__}."
        if is_hooked(layer):
            yield f"Expected the network's own layers, found a hook on {name or kind.__name__}."


def fp8_products(block: torch.nn.Module) -> dict[str, bool]:
    """The block's layers that multiply in fp8 here, by name, and whether each has a scale for its input."""
    return {
        name: getattr(layer, "input_scale", None) is not None
        for name, layer in block.named_modules()
        if _multiplies_in_fp8(layer)
    }


def _multiplies_in_fp8(layer: Any) -> bool:
    if getattr(layer, "layout_type", None) != FP8_LAYOUT or not hasattr(layer, "_full_precision_mm"):
        return False
    is_patched = getattr(layer, "weight_function", None) or getattr(layer, "bias_function", None)
    is_cast = layer._full_precision_mm or getattr(layer, "comfy_force_cast_weights", False)
    return not (is_patched or is_cast or getattr(layer, "pre_quant_scale", None) is not None)


def weights_of(
    block: torch.nn.Module, dtype: torch.dtype, device: torch.device, in_fp8: Mapping[str, bool]
) -> dict[str, torch.Tensor]:
    """Every weight of the block by name, on `device`; those that are so already are not copied.

    They are in `dtype`, but for the weights of the layers `in_fp8`, which come as stored, with their scales.
    """
    found: dict[str, torch.Tensor] = {}
    layers: list[tuple[str, Any]] = [*block.named_modules()]
    for path, layer in layers:
        names = [name for name, parameter in layer._parameters.items() if parameter is not None]
        own: Mapping[str, torch.Tensor | None]
        if path in in_fp8:
            own = _stored(layer, dtype, device)
        elif hasattr(layer, OWN_CAST):
            weight, bias, *_ = layer.cast_bias_weight(dtype=dtype, device=device, bias_dtype=dtype)
            own = dict(zip(PATCHED, (weight, bias), strict=True))
        elif "weight" in names and isinstance(layer, comfy.ops.CastWeightBiasOp):
            own = _cast(layer, dtype, device)
        else:
            own = {name: memory.cast_to(layer._parameters[name], dtype, device) for name in names}
        prefix = f"{path}." if path else ""
        found |= {f"{prefix}{name}": tensor for name, tensor in own.items() if tensor is not None}
    return found


def _stored(layer: Any, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor | None]:
    """A layer's weight in fp8 with its scales, and its bias."""
    settings = {"dtype": layer.weight.dtype, "device": device, "bias_dtype": dtype, "compute_dtype": dtype}
    weight, bias, lent = comfy.ops.cast_bias_weight(layer, **settings, want_requant=True, offloadable=True)
    numbers, scale, scale_of_input = weight._qdata, weight._params.scale, getattr(layer, "input_scale", None)
    if _is_lent(lent):
        numbers, scale, bias = numbers.clone(), scale.clone(), None if bias is None else bias.clone()
    comfy.ops.uncast_bias_weight(layer, weight, bias, lent)
    scales = [None if each is None else _scalar(each, device) for each in (scale, scale_of_input)]
    return {"weight": numbers, "bias": bias, **dict(zip(SCALES, scales, strict=True))}


def _scalar(scale: torch.Tensor, device: torch.device) -> torch.Tensor:
    return scale.to(device, torch.float32).reshape(())


def _cast(layer: Any, dtype: torch.dtype, device: torch.device) -> dict[str, torch.Tensor | None]:
    """A layer's weight and bias as its own call would use them, in memory that no other layer's call takes."""
    settings = {"dtype": dtype, "device": device, "bias_dtype": dtype}
    weight, bias, lent = comfy.ops.cast_bias_weight(layer, **settings, offloadable=True)
    found = {name: _plain(tensor, dtype) for name, tensor in zip(PATCHED, (weight, bias), strict=True)}
    if _is_lent(lent):
        found = {name: None if tensor is None else tensor.clone() for name, tensor in found.items()}
    comfy.ops.uncast_bias_weight(layer, weight, bias, lent)
    return found


def _plain(tensor: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """The numbers of a tensor that may be quantized."""
    dequantize = None if tensor is None or type(tensor.data) is torch.Tensor else getattr(tensor, "dequantize", None)
    return tensor if dequantize is None else dequantize().to(dtype)


def _is_lent(lent: Any) -> bool:
    """Whether weights lie in a buffer that the next layer's are brought into, or that ComfyUI may take back."""
    if lent is None:
        return False
    stream, owner, *_ = lent
    return stream is not None or isinstance(owner, torch.device)
