"""What the name of a tensor in a LoRA file says: the module, the role of the tensor, and the kind of the adapter.

Trainers write a module's name with dots or with underscores, behind a prefix that says which network it is in, and
then an ending for the role.
"""

from __future__ import annotations

import re

TEXT = re.compile(r"^(?:text_encoder\.|text_encoders\.\w+\.transformer\.|lora_te1?_+)")
"""Prefixes of tensors of the text encoder."""
SECOND_TEXT = re.compile(r"^(?:text_encoder_[23]\.|lora_te[23]_+)")
"""Prefixes of tensors of further text encoders, which no family here has."""
DENOISER = re.compile(
    r"^(?:base_model\.model\.|(?:model\.)?diffusion_model\.|transformer\.|unet\.|lora_unet_|lora_transformer_|lycoris_)+_*"
)
"""Prefixes of tensors of the networks that run at a step; tensors without a prefix belong to these networks, too."""
WEIGHT, BIAS = ".weight", ".bias"
_FACTORS = (
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
)
ROLES = (
    (r"[._]lora(?:_A(?:\.\w+)?|_down|\.down|_linear_layer\.down)\.weight|\.lora_A", "down", WEIGHT),
    (r"[._]lora(?:_B(?:\.\w+)?|_up|\.up|_linear_layer\.up)\.weight|\.lora_B", "up", WEIGHT),
    (r"[._]lora_mid\.weight", "mid", WEIGHT),
    (r"[._]lora_B(?:\.\w+)?\.bias|\.diff_b|\.b_norm", "difference", BIAS),
    (r"\.diff|\.w_norm", "difference", WEIGHT),
    (r"\.diff_m", "difference", ".modulation"),
    (r"\.set_weight", "value", WEIGHT),
    *((rf"\.{name}\.weight", f"glora_{name}", WEIGHT) for name in ("a1", "a2", "b1", "b2")),
    *((rf"\.{name}", name, WEIGHT) for name in ("alpha", "dora_scale", "oft_blocks", *_FACTORS)),
)
"""Endings of tensor names, each with the tensor's role and the ending of its module's parameter."""
_ROLES = [(re.compile(f"(?:{pattern})$"), role, suffix) for pattern, role, suffix in ROLES]
UNSUPPORTED = {
    "OFT with a rescale": re.compile(r"\.rescale$"),
    "OFT of PEFT": re.compile(r"\.oft_R(?:\.\w+)*$"),
    "IA3": re.compile(r"\.(?:on_input|ia3_l(?:\.\w+)?)$"),
    "DoRA of PEFT": re.compile(r"\.lora_magnitude_vector(?:\.\w+)*$"),
    "LoRA that widens its layers": re.compile(r"\.reshape_weight$"),
}
"""Kinds of adapters that are not merged, by the endings that give them away."""


def role_of(key: str) -> tuple[str, str, str]:
    """Module, role and parameter ending by a tensor's name; all empty for a tensor of no known role."""
    for pattern, role, suffix in _ROLES:
        if match := pattern.search(key):
            return key[: match.start()].removeprefix("base_model.model."), role, suffix
    return "", "", ""


def unsupported_kind(key: str) -> str | None:
    """Kind of an adapter that is not merged, by a tensor's name; None for any other name."""
    return next((kind for kind, pattern in UNSUPPORTED.items() if pattern.search(key)), None)


def plain_name(name: str) -> str:
    """Common form of a name over all kinds of files; the prefix of CLIP's text model differs by version."""
    return re.sub(r"^text_model_", "", name.replace(".", "_"))


def module_key(name: str) -> str:
    """Plain name of a module without the word that diffusers once put before its attention layers."""
    return plain_name(name).replace("_processor_to_", "_to_")
