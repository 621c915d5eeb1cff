"""Names that DynamiCrafter's published files give to modules with other names in diffusers."""

from __future__ import annotations

from ..ldm_names import RESIDUAL, LdmNames

NAMES = LdmNames(
    in_a_block=(
        *((rf"resnets\.(\d+)\.{name}", f"0.{published}") for name, published in RESIDUAL),
        (r"temp_convs\.(\d+)\.(.+)", r"0.temopral_conv.\2"),
        (r"attentions\.(\d+)\.(.+)", r"1.\2"),
        (r"temp_attentions\.(\d+)\.(.+)", r"2.\2"),
    ),
    outside={
        "time_embedding.linear_1": ("time_embed.0",),
        "time_embedding.linear_2": ("time_embed.2",),
        "fps_embedding.linear_1": ("fps_embedding.0", "framestride_embed.0"),
        "fps_embedding.linear_2": ("fps_embedding.2", "framestride_embed.2"),
        "conv_in": ("input_blocks.0.0",),
        "conv_norm_out": ("out.0",),
        "conv_out": ("out.2",),
    },
    transformers=2,
)
"""The 256 model's file has the later of two names."""


def published(module: str) -> tuple[str, ...]:
    """A module's names in the published files, by its name in diffusers; none for one that they do not have."""
    if module.startswith("transformer_in."):
        return (module.replace("transformer_in.", "init_attn.0.", 1),)
    return NAMES.published(module)
