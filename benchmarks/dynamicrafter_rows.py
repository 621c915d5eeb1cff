"""Ways to call DynamiCrafter's denoiser: diffusers' modules in fp32, under autocast as published and by
`torch.compile`, and the pack's engine, which makes the whole clip too."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from ..common.pack_paths import PICTURE
from ..common.spec import EngineSpec
from ..engine_builder.graph.onnx_export import example_inputs
from ..engine_builder.store.store import EngineStore
from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.media.image import rgb
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, fitting_chunk, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.clip_sizes import clip_sizes
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .dynamicrafter_reference import ReferenceUNet
from .ladder.measure import GIB, free_memory, gpu_state, sample_ms, step_figures, synchronize
from .measured_child import tell

GUIDANCE, ETA, FPS = 7.5, 1.0, 10
"""As published for 1024."""
WARM_UP_STEPS = 3
"""Steps of the clip before the measured one: the second call of an engine may capture it."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and where."""

    folder: Path
    size: ClipSize
    steps: int
    samples: int
    latent_steps: int
    backend: str
    store: Path
    device: torch.device

    @property
    def half(self) -> str:
        """Precision of the rows that are not fp32: on a CPU, where the benchmark is but tried out, fp32 too."""
        return "fp16" if self.device.type == "cuda" else "fp32"


class Row(ABC):
    """A way to call the denoiser, in a process of its own; `answer` is asked for `call`, `clip` or `latents`."""

    title: ClassVar[str]
    precision: ClassVar[str | None] = None
    """Of the inputs and the weights; None for that of half precision."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, setting.device
        self.model = open_model(setting.folder)
        self.sizes = clip_sizes(self.model, *setting.size)
        self.noted: dict[str, Any] = {}
        """Figures of the preparation."""
        self._call: Callable[[], torch.Tensor]

    @abstractmethod
    def prepare(self) -> Callable[[], torch.Tensor]:
        """Loads and compiles; returns the call, which gives the prediction of both guidance branches."""

    def ready(self) -> None:
        """Prepares, and makes the first call."""
        started = time.monotonic()
        self._call = self.prepare()
        self._call()
        synchronize(self.device)
        self.noted["prepare_s"] = time.monotonic() - started
        free_memory(self.device)

    def answer(self, what: str, result: Path) -> dict[str, Any]:
        """Figures of what was asked for; the prediction goes into the file `result`."""
        if what != "call":
            return {}
        self._begin()
        times = sample_ms(self._call, self.setting.samples, self.device)
        figures = {"title": self.title, **self.noted, **step_figures(times), **self._peak(), **gpu_state(self.device)}
        _save(result, self._call())
        free_memory(self.device)
        return figures

    def inputs(self) -> dict[str, torch.Tensor]:
        """The same for every row, up to the precision; what the guidance branches share is the same in both."""
        component, precision = self.model.components["core"].spec, self.precision or self.setting.half
        spec = EngineSpec(component, component.limits, precision, rewrites=("shared_prefix",))
        return {name: each.to(self.device) for name, each in example_inputs(spec, self.sizes).items()}

    def _begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def _peak(self, name: str = "gpu_peak_gib") -> dict[str, float]:
        """PyTorch's peak since `_begin`, weights included."""
        return {name: torch.cuda.max_memory_allocated(self.device) / GIB} if self.device.type == "cuda" else {}


class Eager(Row):
    """Diffusers' modules in fp32, without TF32."""

    title = "diffusers' modules, fp32"
    precision: ClassVar[str | None] = "fp32"
    exact: ClassVar[bool] = True

    def prepare(self) -> Callable[[], torch.Tensor]:
        torch.backends.cuda.matmul.allow_tf32 = not self.exact
        torch.backends.cudnn.allow_tf32 = not self.exact
        stored = self.model.part("unet", self.precision or self.setting.half)
        network = self.compiled(ReferenceUNet(stored.config, stored.state_dict()).to(self.device).predict)
        inputs = self.inputs()

        def call() -> torch.Tensor:
            with torch.no_grad():
                return network(inputs)

        return call

    def compiled(self, network: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
        """The network as it is."""
        return network


class Autocast(Eager):
    """The same weights under autocast, as the published code runs: fp16 on a GPU, bf16 on a CPU."""

    title = "diffusers' modules, fp32 under autocast"
    exact: ClassVar[bool] = False

    def compiled(self, network: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16

        def call(inputs: Any) -> torch.Tensor:
            with torch.autocast(self.device.type, dtype):
                return network(inputs)

        return call


class Compiled(Eager):
    """Diffusers' modules in fp16 under torch.compile."""

    title = "torch.compile"
    precision: ClassVar[str | None] = None
    exact: ClassVar[bool] = False
    mode: ClassVar[str] = "default"

    def compiled(self, network: Callable[[Any], torch.Tensor]) -> Callable[[Any], torch.Tensor]:
        return torch.compile(network, mode=self.mode)


class CompiledMax(Compiled):
    """The same with kernels chosen by trying them out."""

    title = "torch.compile, max-autotune"
    mode: ClassVar[str] = "max-autotune-no-cudagraphs"


class Ours(Row):
    """The pack's engines for exactly this size, found in the store or built; and its clip."""

    title = "I2V TensorRT"

    def prepare(self) -> Callable[[], torch.Tensor]:
        policy = EnginePolicy(self.setting.backend, self.setting.half, "exact")
        self.engines = EngineSet(self.model, EngineStore(self.setting.store), policy, self.device, report=_told())
        started = time.monotonic()
        self.engines.prepare(self.sizes, ("core", "vae_decoder"))
        self.noted["build_s"] = time.monotonic() - started
        runner, inputs = self.engines.runner("core", self.sizes), self.inputs()
        runner(inputs)
        self.noted |= {"engine": self.engines.describe("core"), "notes": self.engines.take_notes()}
        return lambda: runner(inputs)["prediction"]

    def answer(self, what: str, result: Path) -> dict[str, Any]:
        if what == "clip":
            return self._clip()
        return self._latents() if what == "latents" else super().answer(what, result)

    def _clip(self) -> dict[str, Any]:
        """Seconds from noise to frames on the host, after a short clip to warm up."""
        conditioning = self._conditioning()
        plan = plan_clip(self.engines, self.setting.size)
        for steps in (WARM_UP_STEPS, self.setting.steps):
            self._begin()
            started = time.monotonic()
            latents = sample_clip(plan_sampling(plan, denoising(steps)), conditioning, _ignore)
            sampled = time.monotonic()
            decode_clip(plan, latents, fitting_chunk(plan), _ignore)
            ended = time.monotonic()
        seconds = {"sample_s": sampled - started, "decode_s": ended - sampled, "clip_s": ended - started}
        decoder = self.engines.describe("vae_decoder")
        return {"steps": self.setting.steps, **seconds, "decoder": decoder, **self._peak("clip_peak_gib")}

    def _latents(self) -> dict[str, Any]:
        """Likeness of final latents to those of eager PyTorch in fp32 from the same noise, and of eager in half
        precision beside it: what an engine is off by more than that, it adds."""
        conditioning, steps = self._conditioning(), self.setting.latent_steps
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        exact, *others = (
            self._sampled(engines, conditioning, steps)
            for engines in (self._eager("fp32"), self._eager(self.setting.half), self.engines)
        )
        half, ours = (likeness(exact, other, "latents_") for other in others)
        return {"latent_steps": steps, **ours, "eager_half": half}

    def _sampled(self, engines: EngineSet, conditioning: Conditioning, steps: int) -> torch.Tensor:
        plan = plan_sampling(plan_clip(engines, self.setting.size), denoising(steps))
        found = sample_clip(plan, conditioning, _ignore)
        if engines is not self.engines:
            engines.unload()
        return found

    def _eager(self, precision: str) -> EngineSet:
        return EngineSet(self.model, self.engines.store, EnginePolicy("eager", precision, "exact"), self.device)

    def _conditioning(self) -> Conditioning:
        """A picture and a prompt through the encoders as they are: no engine is built for them."""
        eager = self._eager(self.setting.half)
        with Image.open(PICTURE) as opened:
            request = ClipRequest(rgb(opened), "a boat drifts on a lake", "", *self.setting.size, FPS)
        found = encode_clip(plan_clip(eager, self.setting.size), request, ConditioningCache(None), _ignore)
        eager.unload()
        return found


ROWS: dict[str, type[Row]] = {
    "ours": Ours,
    "compile": Compiled,
    "compile-max": CompiledMax,
    "autocast": Autocast,
    "fp32": Eager,
}
"""In the order in which they are prepared, those that take longest first."""


def denoising(steps: int) -> Denoising:
    """The published settings with that many steps."""
    return Denoising(0, GUIDANCE, SamplerSettings(steps, "ddim", ETA))


def likeness(reference: torch.Tensor, found: torch.Tensor, prefix: str = "") -> dict[str, float]:
    """PSNR in dB, whose peak is the reference's range, and the greatest difference."""
    from ..pipeline.quality.metrics import max_abs_difference, psnr
    from ..pipeline.quality.similarity import MAX_DB

    span = float(reference.max() - reference.min())
    return {
        f"{prefix}psnr_db": min(psnr(reference, found, data_range=span), MAX_DB),
        f"{prefix}max_abs": max_abs_difference(reference, found),
    }


def _save(path: Path, tensor: torch.Tensor) -> None:
    from safetensors.torch import save_file

    save_file({"result": tensor.float().cpu().contiguous()}, path)


def _told() -> Callable[[str, float], None]:
    """Tells each stage of a build once."""
    seen: set[str] = set()

    def report(stage: str, done: float) -> None:
        if stage not in seen:
            seen.add(stage)
            tell(f"building {stage}")

    return report


def _ignore(*_: object) -> None:
    """Watches no progress."""
