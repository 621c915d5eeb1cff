"""diffusers' own pipeline, as published or with its networks under torch.compile: the reference and the rival."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...pipeline.models.registry import open_model
from .job import Job
from .measure import CallWatch, free_memory, synchronize
from .published import PUBLISHED
from .variants import Variant
from .way import Clip, Mark, Way


class StockWay(Way):
    """The published pipeline in one precision. Compiled, it decodes as many frames at once as the pack does."""

    def __init__(self, job: Job, variant: Variant) -> None:
        super().__init__(job)
        self._variant = variant
        self._model = open_model(Path(job.folder))
        if variant.precision == "fp32":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False
        self._published = PUBLISHED[self._model.family](self._model, variant.precision, self.device)
        self._pipeline = self._published.pipeline
        self._unet = Watched(self._pipeline.unet, self.device)
        self._pipeline.unet = self._unet
        self._decode = self._published.decoding()
        self._mark: Mark = _ignore
        self._final = self._chunk_of_latents = torch.empty(0)
        self._finish = self._pipeline.decode_latents
        self._pipeline.decode_latents = self._keep_and_decode

    def build(self) -> float | None:
        """Compiling happens at the first call. Row 0 warms up with one step, which is no compiling."""
        started = time.monotonic()
        self.load()
        self.clip(1, _ignore)
        synchronize(self.device)
        return time.monotonic() - started if self._variant.compile_mode else None

    def load(self) -> float | None:
        """Leaves the search for compiled code to the first call."""
        mode = self._variant.compile_mode
        if mode:
            self._unet.call = torch.compile(self._unet.network, mode=mode)
            self._decode = torch.compile(self._decode, mode=mode)

    def capture(self) -> None:
        """Puts the compiled networks into CUDA graphs; they go on with the shapes of the last clip."""
        self._unet.call = Captured(self._unet.call, *self._unet.last)
        self._decode = Captured(self._decode, (self._chunk_of_latents,), {}, copies=True)

    def clip(self, steps: int, mark: Mark, *, offload: bool = False) -> Clip:
        job = self.job

        def conditioned() -> None:
            if offload:
                self._move_encoders("cpu")
            mark("encode")

        self._unet.on_first, self._mark = conditioned, mark
        self._move_encoders(self.device)
        noise = job.noise(self._model)
        video = self._published.frames(job, steps, self._chunk, noise)
        frames = video.permute(0, 2, 3, 1).float().cpu().contiguous()
        mark("decode")
        latents = self._final.float().cpu()
        return Clip(latents, frames)

    def step(self) -> Callable[[], object]:
        return self._unet.again

    def step_ms(self) -> list[float]:
        """Milliseconds of the denoiser calls of the last clip."""
        return self._unet.watch.milliseconds()

    @property
    def _chunk(self) -> int:
        """As published one frame at a time, where it makes no difference to the frames."""
        return self.job.chunk if self._variant.compile_mode or self._model.decodes_over_time else 1

    def _keep_and_decode(self, latents: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        self._mark("denoise")
        self._final = self._published.frame_major(latents) / self._model.latent_scale
        vae = self._pipeline.vae
        vae.decode = self._decode_chunk
        try:
            return self._finish(latents, *args, **kwargs)
        finally:
            del vae.decode

    def _decode_chunk(self, latents: torch.Tensor, **_: Any) -> _Decoded:
        if len(latents) == min(self._chunk, self.job.num_frames):
            self._chunk_of_latents = latents
        return _Decoded(self._decode(latents))

    def _move_encoders(self, device: Any) -> None:
        for name in self._published.encoders:
            getattr(self._pipeline, name).to(device)
        for name in ("encoder", "quant_conv"):
            getattr(self._pipeline.vae, name).to(device)
        if str(device) == "cpu":
            free_memory(self.device)


class Watched:
    """Replaces the pipeline's UNet: times its calls, keeps the last one's arguments, and may call another network."""

    def __init__(self, network: Any, device: torch.device) -> None:
        self.network = network
        self.call: Callable[..., Any] = network
        self.on_first: Callable[[], None] = _ignore
        self.last: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self.watch = CallWatch(device)
        self._device = device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        on_first, self.on_first = self.on_first, _ignore
        if on_first is not _ignore:
            on_first()
            self.watch = CallWatch(self._device)
        self.last = (args, kwargs)
        return self.watch(lambda: self.call(*args, **kwargs))

    def again(self) -> object:
        """The last call once more."""
        args, kwargs = self.last
        with torch.no_grad():
            return self.call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)


class Captured:
    """A call in a CUDA graph: new arguments are copied to where the graph reads, and the graph is replayed.

    The result is where the graph writes it, or with `copies` a copy of that. Other shapes are called directly.
    """

    def __init__(
        self, call: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], *, copies: bool = False
    ) -> None:
        self._call = call
        self._copies = copies
        self._args, self._kwargs = [_own(each) for each in args], {name: _own(each) for name, each in kwargs.items()}
        with torch.no_grad():
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(2):
                    call(*self._args, **self._kwargs)
            torch.cuda.current_stream().wait_stream(stream)
            gc.collect()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._result = call(*self._args, **self._kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        own = [*self._args, *self._kwargs.values()]
        given = [*args, *(kwargs[name] for name in self._kwargs)]
        pairs = [pair for pair in zip(own, given, strict=True) if isinstance(pair[0], torch.Tensor)]
        if any(mine.shape != other.shape for mine, other in pairs):
            return self._call(*args, **kwargs)
        for mine, other in pairs:
            mine.copy_(other)
        self._graph.replay()
        return self._result.clone() if self._copies else self._result


class _Decoded:
    """The VAE's output as the pipeline expects it."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


def _own(value: Any) -> Any:
    return value.clone() if isinstance(value, torch.Tensor) else value


def _ignore(*_: object) -> None:
    """Ignores its arguments."""
