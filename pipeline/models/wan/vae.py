"""Wan's causal video VAE as networks that carry their state from call to call, with every size dynamic.

A latent frame stands for four frames of the video, but the first for one. The first frame has no past, so its
network keeps only the last temporal tap of each kernel. Later networks take and return, as caches, the last two
frames that each temporal convolution has seen, so that any number of calls gives what one call would give.

Wan 2.1's VAE and the residual one of Wan 2.2's TI2V-5B go through the same functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.nn import Module

from ....common.errors import CheckpointError
from ....common.spec import Scope, TensorSpec
from ..diffusers_family import Network
from ..parts import import_faults, library_class
from .causal_vae import CACHE, KEPT, TIME_FACTOR
from .vae_layers import (
    LEVELS,
    Onward,
    Pass,
    Start,
    Whole,
    causal_conv,
    decode,
    down_block,
    last_taps,
    middle,
    to_frames,
    to_volume,
)

PLANE = ("latent_height", "latent_width")

LayerInputs = tuple[torch.Tensor, ...]
"""Outputs of a network: a result, and the caches for the next call."""


class _Scaled(Module):
    """A network with the mean and the standard deviation that scale the sampler's latents."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        for name in ("mean", "std"):
            values = torch.tensor(vae.config[f"latents_{name}"]).reshape(1, -1, 1, 1)
            self.register_buffer(name, values, persistent=False)


class _Decoder(_Scaled):
    """Base of the decoder's two networks."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.decoder, self.post_quant_conv = vae.decoder, vae.post_quant_conv
        self.patch = vae.config.patch_size or 1

    def _image(self, latents: torch.Tensor, frames: Pass) -> torch.Tensor:
        z = (latents * self.std + self.mean).to(self.post_quant_conv.weight.dtype)
        x = decode(causal_conv(to_volume(z), self.post_quant_conv), self.decoder, frames)
        # A residual VAE gives the pixels of a patch as channels, the columns before the rows.
        x = to_frames(x).unflatten(1, (-1, self.patch, self.patch))
        return x.permute(0, 1, 4, 3, 5, 2).flatten(4, 5).flatten(2, 3)


class DecoderFirst(_Decoder):
    """The first frame of a clip."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae)
        self.decoder = last_taps(vae.decoder)

    def forward(self, latents: torch.Tensor) -> LayerInputs:
        """From the sampler's latents [1, z, h, w], float32, to image [1, 3, h*factor, w*factor] in about -1..1."""
        frames = Start(0)
        return self._image(latents, frames), *frames.take_caches()


class DecoderNext(_Decoder):
    """Any number of latent frames after others, four frames each."""

    def forward(
        self,
        latents: torch.Tensor,
        cache_0: torch.Tensor,
        cache_1: torch.Tensor,
        cache_2: torch.Tensor,
        cache_3: torch.Tensor,
    ) -> LayerInputs:
        """From the sampler's latents [n, z, h, w], float32, to image [4*n, 3, h*factor, w*factor] in about -1..1."""
        frames = Onward(0, (cache_0, cache_1, cache_2, cache_3))
        return self._image(latents, frames), *frames.take_caches()


class _Encoder(Module):
    """The encoder's layers up to the rate of the latent frames: nearly all of the work."""

    def __init__(self, vae: Any, encoder: Any) -> None:
        super().__init__()
        self.conv_in = encoder.conv_in
        self.down_blocks = encoder.down_blocks[: _layers_over_time(encoder)]
        self.patch = vae.config.patch_size or 1

    def _features(self, image: torch.Tensor, frames: Pass) -> torch.Tensor:
        x = image.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch))
        x = frames.conv(to_volume(x.permute(0, 1, 5, 3, 2, 4).flatten(1, 3)), self.conv_in)
        for block in self.down_blocks:
            x = down_block(x, block, frames)
        return to_frames(x)


def _layers_over_time(encoder: Any) -> int:
    """Number of the encoder's down_blocks up to the last one that halves the frames."""
    found = [any(name.endswith("time_conv") for name, _ in block.named_modules()) for block in encoder.down_blocks]
    return len(found) - found[::-1].index(True)


class EncoderFirst(_Encoder):
    """The first frame of a clip."""

    def __init__(self, vae: Any) -> None:
        super().__init__(vae, last_taps(vae.encoder))

    def forward(self, image: torch.Tensor) -> LayerInputs:
        """From image [1, 3, h*factor, w*factor] in -1..1 to features [1, channels, h, w]."""
        frames = Start(LEVELS - 1)
        return self._features(image, frames), *frames.take_caches()


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
    ) -> LayerInputs:
        """From image [4, 3, h*factor, w*factor] in -1..1 to features [1, channels, h, w]."""
        frames = Onward(LEVELS - 1, (cache_0, cache_1, cache_2, cache_3))
        return self._features(image, frames), *frames.take_caches()


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
        x, frames = to_volume(features), Whole(0)
        for block in self.down_blocks:
            x = down_block(x, block, frames)
        x = self.act(self.norm_out(middle(x, self.mid_block, frames)))
        x = causal_conv(frames.conv(x, self.conv_out), self.quant_conv)
        return (to_frames(x).chunk(2, dim=1)[0].float() - self.mean) / self.std


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the networks' tensors: channels, channels of the caches for each level, and pixels for a latent."""

    z: int
    factor: int
    features: int
    encoder: tuple[int, ...]
    decoder: tuple[int, ...]


@cache
def _sizes(config: str) -> _Sizes:
    """Read off a run of the first networks over one latent, without weights or memory."""
    with import_faults("vae"):
        kind = library_class("diffusers", "AutoencoderKLWan")
    try:
        with torch.device("meta"), torch.no_grad():
            vae: Any = kind.from_config(json.loads(config))
            z, factor = vae.config.z_dim, 2 ** (LEVELS - 1) * (vae.config.patch_size or 1)
            _, *decoder = DecoderFirst(vae)(torch.empty(1, z, 1, 1))
            features, *encoder = EncoderFirst(vae)(torch.empty(1, 3, factor, factor))
    except Exception as error:  # the library raises any error for a senseless configuration
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
    """Names of height and width with `factor` places for a latent."""
    return PLANE if factor == 1 else tuple(f"{name}*{factor}" for name in PLANE)
