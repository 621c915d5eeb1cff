"""An UPSCALE_MODEL whose network runs by engines, for ComfyUI's own node and others that take one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...common.out_of_memory import is_out_of_memory
from ...pipeline.filters.transfers import padded
from ...runtime.engines.engine_set import Engines
from ...runtime.filters.networks import MOST_AT_ONCE
from ...runtime.filters.upscale import UPSCALER, UpscalerNetworks, upscaling
from . import ui


class CompiledUpscaler:
    """The model, called through an engine of one tile. What it does not know is the model's own.

    Smaller pictures are mirrored beyond their edges up to the tile, where convolutions alone would see black: near
    those edges the result differs a little. Larger ones are cut into tiles. Where memory does not do for the engine
    the model itself runs, so that its caller can ask for less at once.
    """

    def __init__(self, model: Any, engines: Engines[UpscalerNetworks], node_id: str | None) -> None:
        self._model, self._engines, self._node_id = model, engines, node_id
        self._fits, self._told = True, ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, image: Tensor) -> Tensor:
        """Image [n, 3, height, width] from 0 to 1 -> the enlarged one, on its device and in its dtype."""
        found = self._by_engine(image) if self._fits else None
        return self._model(image) if found is None else found.to(image)

    def _by_engine(self, image: Tensor) -> Tensor | None:
        """The enlarged image; None where memory runs out."""
        try:
            tile = self._engines.model.tile
            found = self._in_a_tile(image) if max(image.shape[-2:]) <= tile else self._in_tiles(image)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._fits = False
            self._engines.unload()
            ui.say(self._node_id, "Memory did not do for the engine: the model runs as it is.")
            return None
        self._tell()
        return found

    @torch.inference_mode()
    def _in_a_tile(self, image: Tensor) -> Tensor:
        (height, width), tile, scale = image.shape[-2:], self._engines.model.tile, self._engines.model.scale
        whole = padded(image, tile - height, tile - width)
        made = [self._engines.run(UPSCALER, {"image": part})["enlarged"] for part in whole.split(MOST_AT_ONCE)]
        return torch.cat(made)[..., : height * scale, : width * scale]

    def _in_tiles(self, image: Tensor) -> Tensor:
        frames = upscaling(self._engines)(image.permute(0, 2, 3, 1).float().cpu())
        return torch.stack(list(frames)).permute(0, 3, 1, 2)

    def _tell(self) -> None:
        """Says what serves, once each time that it changes."""
        told = "\n".join([self._engines.describe(UPSCALER), *self._engines.take_notes()])
        if told != self._told:
            self._told = told
            ui.say(self._node_id, told)
