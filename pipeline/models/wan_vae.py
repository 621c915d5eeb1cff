"""Wan's causal video VAE as networks that carry their state from call to call, with every size dynamic.

A latent frame stands for four frames of the video, but the first for one. Every convolution over time sees
the two frames before its own, and what lies before the first one is zero: the first frame's network has no
time in it, and no more than the last third of each kernel. The networks after it take and give, as caches,
the two last frames that each convolution has seen, so that any number of calls gives what one would give.

The modules that hold the weights are diffusers'; the way through them is ours. Wan 2.1's VAE and the
residual one of Wan 2.2's TI2V-5B go through the same functions.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import Module, functional

from ...engine_builder.errors import CheckpointError
from ...engine_builder.spec import Scope, TensorSpec
from ..carried import CACHE, KEPT, TIME_FACTOR
from .diffusers_family import Network

PLANE = ("latent_height", "latent_width")
LEVELS = 4
"""Of sides, from the latents' to eight times those; a residual VAE has patches of 2x2 pixels at the last."""

Given = tuple[torch.Tensor, ...]
"""What a network gives: a result, and the caches for the next call."""


class _Pass:
    """A way through the layers: what those over time see of the frames before, and what they leave to the next.

    `level` is how often the latents' sides have been doubled at this layer. The caches are two frames for each
    layer over time, side by side for all of a level: [1, channels, 2, height, width].
    """

    def __init__(self, level: int, before: tuple[torch.Tensor, ...] = ()) -> None:
        self.level = level
        self._before = before
        self._taken = [0] * LEVELS
        self._kept: list[list[torch.Tensor]] = [[] for _ in range(LEVELS)]

    @property
    def caches(self) -> tuple[torch.Tensor, ...]:
        """The caches after the pass, a level each."""
        return tuple(torch.cat(kept, dim=1) for kept in self._kept)

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


class _Start(_Pass):
    """The pass of the first frame, before which there is nothing; kernels have their last tap alone."""

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        self.keep(functional.pad(x, (0, 0, 0, 0, 1, 0)))
        return _conv(x, conv)

    def double(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        # The first frame stays one, and those after it do not see it here.
        self.keep(torch.zeros_like(x).expand(-1, -1, 2, -1, -1))
        return x

    def halve(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        self.keep(functional.pad(x, (0, 0, 0, 0, 1, 0)))
        return x


class _Onward(_Pass):
    """The pass of frames after others, from the caches that those have left."""

    def _after(self, x: torch.Tensor) -> torch.Tensor:
        """x behind the two frames before it."""
        start, level = self._taken[self.level], self.level
        self._taken[level] = start + x.shape[1]
        x = torch.cat([self._before[level][:, start : self._taken[level]], x], dim=2)
        self.keep(x)
        return x

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return _conv(self._after(x), conv)

    def double(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return self.conv(x, conv).unflatten(1, (2, -1)).permute(0, 2, 3, 1, 4, 5).flatten(2, 3)

    def halve(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return _conv(self._after(x)[:, :, 1:], conv)


class _Whole(_Pass):
    """The pass of all frames of a clip at once, through layers that keep the frame rate."""

    def conv(self, x: torch.Tensor, conv: Any) -> torch.Tensor:
        return _conv(functional.pad(x, (0, 0, 0, 0, 2, 0)), conv)


def _conv(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """A causal convolution over frames that are there; only height and width are padded."""
    height, width = (side // 2 for side in conv.kernel_size[1:])
    return functional.conv3d(x, conv.weight, conv.bias, conv.stride, (0, height, width))


def _resnet(x: torch.Tensor, block: Any, frames: _Pass) -> torch.Tensor:
    """A WanResidualBlock."""
    h = frames.conv(block.nonlinearity(block.norm1(x)), block.conv1)
    h = frames.conv(block.nonlinearity(block.norm2(h)), block.conv2)
    return h + (x if isinstance(block.conv_shortcut, torch.nn.Identity) else _conv(x, block.conv_shortcut))


def _middle(x: torch.Tensor, block: Any, frames: _Pass) -> torch.Tensor:
    """A WanMidBlock, whose attention goes over the places of each frame."""
    first, *rest = block.resnets
    x = _resnet(x, first, frames)
    for attention, resnet in zip(block.attentions, rest, strict=True):
        x = _resnet(attention(x), resnet, frames)
    return x


def _to_frames(x: torch.Tensor) -> torch.Tensor:
    """[1, channels, frames, height, width] as [frames, channels, height, width]."""
    return x.squeeze(0).transpose(0, 1)


def _to_volume(x: torch.Tensor) -> torch.Tensor:
    """[frames, channels, height, width] as [1, channels, frames, height, width]."""
    return x.transpose(0, 1).unsqueeze(0)


def _up(x: torch.Tensor, sampler: Any, frames: _Pass) -> torch.Tensor:
    """A WanResample to twice the sides, and to twice the frames where it has a convolution for that."""
    if sampler.mode == "upsample3d":
        x = frames.double(x, sampler.time_conv)
    frames.level += 1
    doubled = functional.interpolate(_to_frames(x), scale_factor=2.0, mode="nearest")
    return _to_volume(sampler.resample[1](doubled))


def _down(x: torch.Tensor, sampler: Any, frames: _Pass) -> torch.Tensor:
    """A WanResample to half the sides, and to half the frames where it has a convolution for that."""
    x = _to_volume(sampler.resample(_to_frames(x)))
    frames.level -= 1
    return frames.halve(x, sampler.time_conv) if sampler.mode == "downsample3d" else x


def _repeated(x: torch.Tensor, up: Any, frames: _Pass) -> torch.Tensor:
    """A DupUp3D: channels become frames, height and width, repeated as often as that takes."""
    x = x.unsqueeze(2).expand(-1, -1, up.repeats, -1, -1, -1).flatten(1, 2)
    x = x.unflatten(1, (up.out_channels, up.factor_t, up.factor_s, up.factor_s))
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)
    return x[:, :, up.factor_t - 1 :] if isinstance(frames, _Start) else x


def _averaged(x: torch.Tensor, down: Any, frames: _Pass) -> torch.Tensor:
    """An AvgDown3D: frames, height and width become channels, averaged over as many as that takes."""
    if isinstance(frames, _Start):
        x = functional.pad(x, (0, 0, 0, 0, down.factor_t - 1, 0))
    x = x.unflatten(4, (-1, down.factor_s)).unflatten(3, (-1, down.factor_s)).unflatten(2, (-1, down.factor_t))
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return x.unflatten(1, (down.out_channels, down.group_size)).mean(dim=2)


def _up_block(x: torch.Tensor, block: Any, frames: _Pass) -> torch.Tensor:
    """A WanUpBlock, or a WanResidualUpBlock."""
    before = x
    for resnet in block.resnets:
        x = _resnet(x, resnet, frames)
    for sampler in getattr(block, "upsamplers", None) or filter(None, [getattr(block, "upsampler", None)]):
        x = _up(x, sampler, frames)
    shortcut = getattr(block, "avg_shortcut", None)
    return x if shortcut is None else x + _repeated(before, shortcut, frames)


def _down_block(x: torch.Tensor, block: Any, frames: _Pass) -> torch.Tensor:
    """One of WanEncoder3d's down_blocks: a WanResidualDownBlock, or a layer of Wan 2.1's flat list."""
    if hasattr(block, "avg_shortcut"):
        before = x
        for layer in (*block.resnets, *filter(None, [block.downsampler])):
            x = _down_block(x, layer, frames)
        return x + _averaged(before, block.avg_shortcut, frames)
    if hasattr(block, "resample"):
        return _down(x, block, frames)
    return _resnet(x, block, frames) if hasattr(block, "conv1") else block(x)


def _decode(x: torch.Tensor, decoder: Any, frames: _Pass) -> torch.Tensor:
    """WanDecoder3d."""
    x = _middle(frames.conv(x, decoder.conv_in), decoder.mid_block, frames)
    for block in decoder.up_blocks:
        x = _up_block(x, block, frames)
    return frames.conv(decoder.nonlinearity(decoder.norm_out(x)), decoder.conv_out)


def _last_taps(network: Module) -> Any:
    """A copy that shares the weights, but for the kernels over time: of them it has the tap on the frame itself."""
    shared: dict[int, Any] = {id(weight): weight for weight in network.parameters()}
    for module in network.modules():
        if isinstance(module, torch.nn.Conv3d):
            last = module.weight[:, :, -1:].clone()
            shared[id(module.weight)] = torch.nn.Parameter(last, module.weight.requires_grad)
    return copy.deepcopy(network, shared)


class _Scaled(Module):
    """A network that knows how the sampler's latents are scaled."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(vae.config[f"latents_{name}"]).reshape(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)


class _Decoder(_Scaled):
    """What both networks of the decoder share."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.patch = vae.config.patch_size or 1

    def _image(self, latents: torch.Tensor, frames: _Pass) -> torch.Tensor:
        z = (latents * self.std + self.mean).to(self.post_quant_conv.weight.dtype)
        x = _decode(_conv(_to_volume(z), self.post_quant_conv), self.decoder, frames)
        # A residual VAE gives the pixels of a patch as channels, the columns before the rows.
        x = _to_frames(x).unflatten(1, (-1, self.patch, self.patch))
        return x.permute(0, 1, 4, 3, 5, 2).flatten(4, 5).flatten(2, 3)


class DecoderFirst(_Decoder):
    """The first frame of a clip."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.decoder = _last_taps(vae.decoder)

    def forward(self, latents: torch.Tensor) -> Given:
        """From the sampler's latents [1, z, h, w], float32, to image [1, 3, h*factor, w*factor] in about -1..1."""
        frames = _Start(0)
        return self._image(latents, frames), *frames.caches


class DecoderNext(_Decoder):
    """Any number of latent frames after others, four frames each."""

    def forward(
        self,
        latents: torch.Tensor,
        cache_0: torch.Tensor,
        cache_1: torch.Tensor,
        cache_2: torch.Tensor,
        cache_3: torch.Tensor,
    ) -> Given:
        """From the sampler's latents [n, z, h, w], float32, to image [4*n, 3, h*factor, w*factor] in about -1..1."""
        frames = _Onward(0, (cache_0, cache_1, cache_2, cache_3))
        return self._image(latents, frames), *frames.caches


class _Encoder(Module):
    """The encoder's layers up to the rate of the latent frames: nearly all of the work."""

    def __init__(self, vae: Any, encoder: Any) -> None:
        super().__init__()
        self.conv_in = encoder.conv_in
        self.down_blocks = encoder.down_blocks[: _layers_over_time(encoder)]
        self.patch = vae.config.patch_size or 1

    def _features(self, image: torch.Tensor, frames: _Pass) -> torch.Tensor:
        x = image.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        x = frames.conv(_to_volume(x.permute(0, 1, 5, 3, 2, 4).flatten(1, 3)), self.conv_in)
        for block in self.down_blocks:
            x = _down_block(x, block, frames)
        return _to_frames(x)


def _layers_over_time(encoder: Any) -> int:
    """How many of the encoder's down_blocks there are up to the last one that halves the frames."""
    found = [any(name.endswith("time_conv") for name, _ in block.named_modules()) for block in encoder.down_blocks]
    return len(found) - found[::-1].index(True)


class EncoderFirst(_Encoder):
    """The first frame of a clip."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae, _last_taps(vae.encoder))

    def forward(self, image: torch.Tensor) -> Given:
        """From image [1, 3, h*factor, w*factor] in -1..1 to features [1, channels, h, w]."""
        frames = _Start(LEVELS - 1)
        return self._features(image, frames), *frames.caches


class EncoderNext(_Encoder):
    """The four frames of a latent frame after others."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae, vae.encoder)

    def forward(
        self,
        image: torch.Tensor,
        cache_0: torch.Tensor,
        cache_1: torch.Tensor,
        cache_2: torch.Tensor,
        cache_3: torch.Tensor,
    ) -> Given:
        """From image [4, 3, h*factor, w*factor] in -1..1 to features [1, channels, h, w]."""
        frames = _Onward(LEVELS - 1, (cache_0, cache_1, cache_2, cache_3))
        return self._features(image, frames), *frames.caches


class EncoderLast(_Scaled):
    """The layers at the rate of the latent frames, over all frames of a clip at once."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        encoder = vae.encoder
        self.down_blocks = encoder.down_blocks[_layers_over_time(encoder) :]
        self.mid_block, self.norm_out, self.act = encoder.mid_block, encoder.norm_out, encoder.nonlinearity
        self.conv_out, self.quant_conv = encoder.conv_out, vae.quant_conv

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """From features [frames, channels, h, w] to latents [frames, z, h, w], float32, as the sampler has them.

        They are the mean of the posterior, which depends on no random state.
        """
        x, frames = _to_volume(features), _Whole(0)
        for block in self.down_blocks:
            x = _down_block(x, block, frames)
        x = self.act(self.norm_out(_middle(x, self.mid_block, frames)))
        x = _conv(frames.conv(x, self.conv_out), self.quant_conv)
        return (_to_frames(x).chunk(2, dim=1)[0].float() - self.mean) / self.std


@dataclass(frozen=True)
class _Sizes:
    """What the networks' tensors come to: channels, of the caches for each level, and pixels for a latent."""

    z: int
    factor: int
    features: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]


@cache
def _sizes(config: str) -> _Sizes:
    """Read off a run of the first networks over one latent, without weights or memory."""
    from diffusers import AutoencoderKLWan

    try:
        with torch.device("meta"), torch.no_grad():
            vae: Any = AutoencoderKLWan.from_config(json.loads(config))
            z, factor = vae.config.z_dim, 2 ** (LEVELS - 1) * (vae.config.patch_size or 1)
            _, *decoder = DecoderFirst(vae)(torch.empty(1, z, 1, 1))
            features, *encoder = EncoderFirst(vae)(torch.empty(1, 3, factor, factor))
    except Exception as error:  # the library raises whatever a senseless configuration leads to
        found = str(error).strip().split("\n")[0] or type(error).__name__
        raise CheckpointError(f"Expected the configuration of Wan's VAE, found: {found}") from error
    channels = (tuple(cache.shape[1] for cache in caches) for caches in (encoder, decoder))
    return _Sizes(z, factor, features.shape[1], *channels)


def vae_networks(config: Mapping[str, Any]) -> dict[str, Network]:
    """The five networks of a VAE of this configuration, by component name.

    Raises CheckpointError for a configuration that is not of four levels, or that diffusers makes no VAE of.
    """
    sizes = _sizes(json.dumps(dict(config), sort_keys=True))
    encoder_before, encoder_after = (_caches(name, sizes.encoder) for name in (CACHE, KEPT))
    decoder_before, decoder_after = (_caches(name, sizes.decoder) for name in (CACHE, KEPT))

    def picture(frames: str | int) -> TensorSpec:
        return TensorSpec("image", (frames, 3, *_scaled(sizes.factor)), scope=Scope.CLIP)

    def latents(frames: str | int) -> TensorSpec:
        return TensorSpec("latents", (frames, sizes.z, *PLANE), "float32", Scope.CLIP)

    def features(frames: str | int) -> TensorSpec:
        return TensorSpec("features", (frames, sizes.features, *PLANE), scope=Scope.CLIP)

    def network(
        module: Callable[[Any], Module], inputs: list[TensorSpec], outputs: list[TensorSpec], *counts: str
    ) -> Network:
        return Network("vae", module, tuple(inputs), tuple(outputs), (*counts, *PLANE))

    one, more = [features(1), *encoder_after], [picture(f"chunk*{TIME_FACTOR}"), *decoder_after]
    return {
        "vae_encoder_first": network(EncoderFirst, [picture(1)], one),
        "vae_encoder_next": network(EncoderNext, [picture(TIME_FACTOR), *encoder_before], one),
        "vae_encoder_last": network(EncoderLast, [features("frames")], [latents("frames")], "frames"),
        "vae_decoder_first": network(DecoderFirst, [latents(1)], [picture(1), *decoder_after]),
        "vae_decoder_next": network(DecoderNext, [latents("chunk"), *decoder_before], more, "chunk"),
    }


def _caches(name: str, channels: tuple[int, ...]) -> list[TensorSpec]:
    """The caches that a network takes or gives, a level each."""
    return [
        TensorSpec(f"{name}_{level}", (1, count, 2, *_scaled(2**level)), scope=Scope.CLIP)
        for level, count in enumerate(channels)
    ]


def _scaled(factor: int) -> tuple[str, ...]:
    """Height and width at so many places for a latent."""
    return PLANE if factor == 1 else tuple(f"{name}*{factor}" for name in PLANE)
