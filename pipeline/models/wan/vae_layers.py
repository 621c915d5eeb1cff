"""The layers of Wan's causal video VAE: diffusers' modules hold the weights, the way through them is ours.

Every convolution over time sees the two frames before its own, and frames before the first are zero.
A pass gives a layer the earlier frames: none, the caches of another pass, or the zeros before a whole clip.
x is [1, channels, frames, height, width] throughout.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Module, functional

LEVELS = 4
"""Levels of sides, from the latents' to eight times those; a residual VAE's last has patches of 2x2 pixels."""


class Pass:
    """A way through the layers: earlier frames for the layers over time, and caches for the next pass.

    `level` is how often the latents' sides have been doubled at this layer. The caches are two frames for each
    layer over time, side by side for all of a level: [1, channels, 2, height, width].
    """

    def __init__(self, level: int, before: tuple[torch.Tensor, ...] = ()) -> None:
        self.level = level
        self._before = before
        self._taken = [0] * LEVELS
        self._kept: list[list[torch.Tensor]] = [[] for _ in range(LEVELS)]

    def take_caches(self) -> Iterator[torch.Tensor]:
        """The caches after the pass, a level each; their parts are freed level by level."""
        while self._kept:
            yield torch.cat(self._kept.pop(0), dim=1)

    def keep(self, x: torch.Tensor) -> None:
        """Leaves the last two frames to the next pass."""
        self._kept[self.level].append(x[:, :, -2:].contiguous())

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        """A causal convolution of x [1, channels, frames, height, width]."""
        raise NotImplementedError

    def double(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        """Two frames for one."""
        raise NotImplementedError

    def halve(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        """One frame for two."""
        raise NotImplementedError


class Start(Pass):
    """The pass of the first frame, without earlier frames; kernels have their last tap alone."""

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        self.keep(functional.pad(x, (0, 0, 0, 0, 1, 0)))
        return causal_conv(x, conv)

    def double(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        # The first frame stays one, and those after it do not see it here.
        self.keep(torch.zeros_like(x).expand(-1, -1, 2, -1, -1))
        return x

    def halve(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        self.keep(functional.pad(x, (0, 0, 0, 0, 1, 0)))
        return x


class Onward(Pass):
    """The pass of frames after others, from the caches that those have left."""

    def _after(self, x: torch.Tensor) -> torch.Tensor:
        """x behind the two frames before it."""
        start, level = self._taken[self.level], self.level
        self._taken[level] = start + x.shape[1]
        x = torch.cat([self._before[level][:, start : self._taken[level]], x], dim=2)
        self.keep(x)
        return x

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return causal_conv(self._after(x), conv)

    def double(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return self.conv(x, conv).unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)

    def halve(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return causal_conv(self._after(x)[:, :, 1:], conv)


class Whole(Pass):
    """The pass of all frames of a clip at once, through layers that keep the frame rate."""

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return causal_conv(functional.pad(x, (0, 0, 0, 0, 2, 0)), conv)


def causal_conv(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """A causal convolution over frames that are there; only height and width are padded."""
    height, width = (side // 2 for side in conv.kernel_size[1:])
    return functional.conv3d(x, conv.weight, conv.bias, conv.stride, (0, height, width))


def _resnet(x: torch.Tensor, block: Any, frames: Pass) -> torch.Tensor:
    """A WanResidualBlock."""
    h = frames.conv(block.nonlinearity(block.norm1(x)), block.conv1)
    h = frames.conv(block.nonlinearity(block.norm2(h)), block.conv2)
    return h + (x if isinstance(block.conv_shortcut, torch.nn.Identity) else causal_conv(x, block.conv_shortcut))


def middle(x: torch.Tensor, block: Any, frames: Pass) -> torch.Tensor:
    """A WanMidBlock, whose attention goes over the places of each frame."""
    first, *rest = block.resnets
    x = _resnet(x, first, frames)
    for attention, resnet in zip(block.attentions, rest, strict=True):
        x = _resnet(attention(x), resnet, frames)
    return x


def to_frames(x: torch.Tensor) -> torch.Tensor:
    """[1, channels, frames, height, width] as [frames, channels, height, width]."""
    return x.squeeze(0).transpose(0, 1)


def to_volume(x: torch.Tensor) -> torch.Tensor:
    """[frames, channels, height, width] as [1, channels, frames, height, width]."""
    return x.transpose(0, 1).unsqueeze(0)


def _up(x: torch.Tensor, sampler: Any, frames: Pass) -> torch.Tensor:
    """A WanResample to twice the sides, and to twice the frames where it has a convolution for that."""
    if sampler.mode == "upsample3d":
        x = frames.double(x, sampler.time_conv)
    frames.level += 1
    doubled = functional.interpolate(to_frames(x), scale_factor=2.0, mode="nearest")
    return to_volume(sampler.resample[1](doubled))


def _down(x: torch.Tensor, sampler: Any, frames: Pass) -> torch.Tensor:
    """A WanResample to half the sides, and to half the frames where it has a convolution for that."""
    x = to_volume(sampler.resample(to_frames(x)))
    frames.level -= 1
    return frames.halve(x, sampler.time_conv) if sampler.mode == "downsample3d" else x


def _repeated(x: torch.Tensor, up: Any, frames: Pass) -> torch.Tensor:
    """A DupUp3D: channels become frames, height and width, repeated as often as that takes."""
    x = x.unsqueeze(2).expand(-1, -1, up.repeats, -1, -1, -1).flatten(1, 2)
    x = x.unflatten(1, (up.out_channels, up.factor_t, up.factor_s, up.factor_s))
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, up.factor_t - 1 :] if isinstance(frames, Start) else x


def _averaged(x: torch.Tensor, down: Any, frames: Pass) -> torch.Tensor:
    """An AvgDown3D: frames, height and width become channels, averaged over as many as that takes."""
    if isinstance(frames, Start):
        x = functional.pad(x, (0, 0, 0, 0, down.factor_t - 1, 0))
    x = x.unflatten(4, (-1, down.factor_s)).unflatten(3, (-1, down.factor_s)).unflatten(2, (-1, down.factor_t))
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return x.unflatten(1, (down.out_channels, down.group_size)).mean(dim=2)


def _up_block(x: torch.Tensor, block: Any, frames: Pass) -> torch.Tensor:
    """A WanUpBlock, or a WanResidualUpBlock."""
    before = x
    for resnet in block.resnets:
        x = _resnet(x, resnet, frames)
    for sampler in getattr(block, "upsamplers", None) or filter(None, [getattr(block, "upsampler", None)]):
        x = _up(x, sampler, frames)
    shortcut = getattr(block, "avg_shortcut", None)
    return x if shortcut is None else x + _repeated(before, shortcut, frames)


def down_block(x: torch.Tensor, block: Any, frames: Pass) -> torch.Tensor:
    """One of WanEncoder3d's down_blocks: a WanResidualDownBlock, or a layer of Wan 2.1's flat list."""
    if hasattr(block, "avg_shortcut"):
        before = x
        for layer in (*block.resnets, *filter(None, [block.downsampler])):
            x = down_block(x, layer, frames)
        return x + _averaged(before, block.avg_shortcut, frames)
    if hasattr(block, "resample"):
        return _down(x, block, frames)
    return _resnet(x, block, frames) if hasattr(block, "conv1") else block(x)


def decode(x: torch.Tensor, decoder: Any, frames: Pass) -> torch.Tensor:
    """WanDecoder3d."""
    x = middle(frames.conv(x, decoder.conv_in), decoder.mid_block, frames)
    for block in decoder.up_blocks:
        x = _up_block(x, block, frames)
    return frames.conv(decoder.nonlinearity(decoder.norm_out(x)), decoder.conv_out)


def last_taps(network: Module) -> Any:
    """A copy that shares the weights, but for the kernels over time: of them it has the tap on the frame itself."""
    shared: dict[int, Any] = {id(weight): weight for weight in network.parameters()}
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            last = module.weight[:, :, -1:].clone()
            shared[id(module.weight)] = torch.nn.Parameter(last, module.weight.requires_grad)
    return copy.deepcopy(network, shared)
