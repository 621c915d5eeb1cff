"""The UNet of diffusers' three-dimensional blocks, which I2VGen-XL and DynamiCrafter have in common."""

from __future__ import annotations

from typing import Any

import torch


def per_frame(x: torch.Tensor, frames: int) -> torch.Tensor:
    """[batch, ...] repeated to [batch * frames, ...]; expand and reshape export where repeat_interleave fails."""
    return x.unsqueeze(1).expand(x.shape[0], frames, *x.shape[1:]).reshape(x.shape[0] * frames, *x.shape[1:])


def frames_to_batch(x: torch.Tensor) -> torch.Tensor:
    """[batch, channels, frames, height, width] as [batch * frames, channels, height, width]."""
    return x.permute(0, 2, 1, 3, 4).flatten(0, 1)


def attends(block: torch.nn.Module) -> bool:
    """Whether a block has attention."""
    return bool(getattr(block, "has_cross_attention", False))


class UNet3D(torch.nn.Module):
    """The layers of such a UNet, and the way through them once time and context are known."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding
        self.conv_in = unet.conv_in
        self.transformer_in = unet.transformer_in
        self.down_blocks = unet.down_blocks
        self.mid_block = unet.mid_block
        self.up_blocks = unet.up_blocks
        self.conv_norm_out = unet.conv_norm_out
        self.conv_act = unet.conv_act
        self.conv_out = unet.conv_out
        self.side_multiple = 2 ** (len(unet.up_blocks) - 1)

    def predict(self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor, frames: int) -> torch.Tensor:
        """From x [batch * frames, channels, h, w], emb [batch, embedding] and context [batch * frames, tokens, width]
        to the prediction, shaped as x."""
        height, width = x.shape[2:]
        given = {"temb": per_frame(emb, frames), "num_frames": frames}
        attended = {**given, "encoder_hidden_states": context}
        x = self.transformer_in(self.conv_in(x), num_frames=frames, return_dict=False)[0]
        skips: tuple[torch.Tensor, ...] = (x,)
        for block in self.down_blocks:
            x, produced = block(hidden_states=x, **(attended if attends(block) else given))
            skips += produced
        x = self.mid_block(x, **attended)
        odd = height % self.side_multiple != 0 or width % self.side_multiple != 0
        for block in self.up_blocks:
            used, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            # Sides that do not halve evenly come up one short: the next skip connection gives the size.
            size = skips[-1].shape[2:] if odd and skips else None
            x = block(
                hidden_states=x,
                res_hidden_states_tuple=used,
                upsample_size=size,
                **(attended if attends(block) else given),
            )
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))
