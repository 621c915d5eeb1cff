"""Names that Stable Video Diffusion's publishers, and ComfyUI, give to modules with other names in diffusers."""

from __future__ import annotations

from ..ldm_names import RESIDUAL, LdmNames

NAMES = LdmNames(
    in_a_block=(
        *((rf"resnets\.(\d+)\.spatial_res_block\.{ours}", f"0.{theirs}") for ours, theirs in RESIDUAL),
        *((rf"resnets\.(\d+)\.temporal_res_block\.{ours}", f"0.time_stack.{theirs}") for ours, theirs in RESIDUAL),
        (r"resnets\.(\d+)\.time_mixer", "0.time_mixer"),
        (r"attentions\.(\d+)\.temporal_transformer_blocks\.(.+)", r"1.time_stack.\2"),
        (r"attentions\.(\d+)\.time_pos_embed\.linear_1", "1.time_pos_embed.0"),
        (r"attentions\.(\d+)\.time_pos_embed\.linear_2", "1.time_pos_embed.2"),
        (r"attentions\.(\d+)\.(.+)", r"1.\2"),
    ),
    outside={
        "time_embedding.linear_1": ("time_embed.0",),
        "time_embedding.linear_2": ("time_embed.2",),
        "add_embedding.linear_1": ("label_emb.0.0",),
        "add_embedding.linear_2": ("label_emb.0.2",),
        "conv_in": ("input_blocks.0.0",),
        "conv_norm_out": ("out.0",),
        "conv_out": ("out.2",),
    },
    transformers=1,
)
