"""Networks that hand caches from one call to the next: a video's frames in as many calls as memory asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from ..base import Run

CACHE, KEPT = "cache", "kept"
"""`kept_0` of one call is `cache_0` of the next."""
TIME_FACTOR = 4
"""Frames for one latent frame, but for the first of a clip."""

OnFrame = Callable[[int, int], None]
"""Callback with the number of latent frames done and the number of all latent frames; may raise to stop."""


class CausalState:
    """The components `NAME_first` and `NAME_next` as one, called with part after part of a clip.

    The caches stay on the device. A call that fails leaves them as they were, and may be made again with less.
    """

    def __init__(self, run: Run, name: str, result: str) -> None:
        self._run = run
        self._name = name
        self._result = result
        self.caches: Mapping[str, torch.Tensor] = {}

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The result for the next part of the clip."""
        component = f"{self._name}_{'next' if self.caches else 'first'}"
        found = dict(self._run(component, {**inputs, **self.caches}))
        result = found.pop(self._result)
        self.caches = {name.replace(KEPT, CACHE, 1): cache for name, cache in found.items()}
        return result


def decode_causal(run: Run) -> Callable[[torch.Tensor], torch.Tensor]:
    """Decode function for `pipeline.decode.decode`, called with a clip's latents in order: one, then any number.

    The function goes from the sampler's latents [n, z, h, w] to images [1, 3, height, width] for the first of the
    clip, [n * TIME_FACTOR, 3, height, width] after it. Each clip needs a function of its own, which holds the caches.
    """
    carried = CausalState(run, "vae_decoder", "image")
    return lambda latents: carried(latents=latents)


def encode_picture(run: Run, image: torch.Tensor, latent_frames: int, on_frame: OnFrame) -> torch.Tensor:
    """The sampler's latents [latent_frames, z, h, w], float32, of a clip that is `image` and grey after it.

    `image` is [1, 3, height, width] in -1..1. A convolution sees two frames back, so that the features of
    grey frames become equal: once a call leaves the caches unchanged, further calls would give the same features
    again, and none is made.
    """
    carried = CausalState(run, "vae_encoder", "features")
    features = [carried(image=image)]
    grey = torch.zeros(TIME_FACTOR, *image.shape[1:], device=features[0].device)
    on_frame(1, latent_frames)
    while len(features) < latent_frames:
        before = carried.caches
        features.append(carried(image=grey))
        if _are_equal(before, carried.caches):
            features += features[-1:] * (latent_frames - len(features))
        on_frame(len(features), latent_frames)
    return run("vae_encoder_last", {"features": torch.cat(features)})["latents"]


def _are_equal(some: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)
