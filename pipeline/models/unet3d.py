"""The UNet of diffusers' three-dimensional blocks, which I2VGen-XL and DynamiCrafter have in common."""

from __future__ import annotations

from typing import Any

import torch

from .deep_features import shallow_layers


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
        self.mid_block: Any = unet.mid_block
        self.up_blocks = unet.up_blocks
        self.conv_norm_out = unet.conv_norm_out
        self.conv_act = unet.conv_act
        self.conv_out = unet.conv_out
        self.side_multiple = 2 ** (len(unet.up_blocks) - 1)

    def predict(self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor, frames: int) -> torch.Tensor:
        """From x [batch * frames, channels, h, w], emb [batch, embedding] and context [batch * frames, tokens, width]
        to the prediction, shaped as x."""
        return self.predict_deep(x, emb, context, frames)[0]

    def predict_deep(
        self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor, frames: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction of `predict`, and the deep features [batch * frames, channels, h, w]."""
        height, width = x.shape[2:]
        given = _given(emb, context, frames)
        x = self._begin(x, frames)
        skips: tuple[torch.Tensor, ...] = (x,)
        for block in self.down_blocks:
            x, produced = block(hidden_states=x, **_taken(block, given))
            skips += produced
        x = self.mid_block(x, **given)
        odd = height % self.side_multiple != 0 or width % self.side_multiple != 0
        *blocks, last = self.up_blocks
        for block in blocks:
            used, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            # Sides that do not halve evenly come up one short: the next skip connection gives the size.
            size = skips[-1].shape[2:] if odd else None
            x = block(hidden_states=x, res_hidden_states_tuple=used, upsample_size=size, **_taken(block, given))
        first = len(last.resnets) - shallow_layers(last)
        deep = self._ascend(x, range(first), skips, given)
        x = self._ascend(deep, range(first, len(last.resnets)), skips[: -first or None], given)
        return self._end(x), deep

    def predict_shallow(
        self, x: torch.Tensor, emb: torch.Tensor, context: torch.Tensor, frames: int, deep: torch.Tensor
    ) -> torch.Tensor:
        """The prediction of `predict` from the deep features: the same where they are of the same call."""
        given, last = _given(emb, context, frames), self.up_blocks[-1]
        skips, count = [self._begin(x, frames)], shallow_layers(last)
        for number in range(count - 1):
            skips.append(_layer(self.down_blocks[0], number, skips[-1], given))
        numbers = range(len(last.resnets) - count, len(last.resnets))
        return self._end(self._ascend(deep, numbers, tuple(skips), given))

    def keep_shallow(self) -> None:
        """Lets go of the blocks below the shallow part: the first block and the last one stay."""
        self.down_blocks, self.mid_block, self.up_blocks = self.down_blocks[:1], None, self.up_blocks[-1:]

    def _begin(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        return self.transformer_in(self.conv_in(x), num_frames=frames, return_dict=False)[0]

    def _ascend(
        self, x: torch.Tensor, numbers: range, skips: tuple[torch.Tensor, ...], given: dict[str, Any]
    ) -> torch.Tensor:
        """Those layers of the last block, each with the last of the skip connections that are left."""
        for number in numbers:
            x = _layer(self.up_blocks[-1], number, torch.cat([x, skips[-1]], dim=1), given)
            skips = skips[:-1]
        return x

    def _end(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))


def _given(emb: torch.Tensor, context: torch.Tensor, frames: int) -> dict[str, Any]:
    """Inputs of every block that attends beside its activation."""
    return {"temb": per_frame(emb, frames), "num_frames": frames, "encoder_hidden_states": context}


def _taken(block: torch.nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """The block's part of the inputs."""
    names = given if attends(block) else ("temb", "num_frames")
    return {name: given[name] for name in names}


def _layer(block: Any, number: int, x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """One layer of a block, as the block's own forward has it."""
    x = block.temp_convs[number](block.resnets[number](x, given["temb"]), num_frames=given["num_frames"])
    if attends(block):
        context = given["encoder_hidden_states"]
        x = block.attentions[number](x, encoder_hidden_states=context, return_dict=False)[0]
        x = block.temp_attentions[number](x, num_frames=given["num_frames"], return_dict=False)[0]
    return x
