"""`run.py bench call`: one call of the network that runs at every step, for models whose checkpoint is too large for
a whole ladder. Its weights are random ones, drawn on the GPU.

Each way has a process of its own. All prepare side by side, compilers and all, and are then measured one at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..common.device import default_device
from ..common.pack_paths import PACK
from ..common.spec import EngineSpec
from ..engine_builder.backends.base import Runner
from ..engine_builder.backends.inductor.backend import InductorBackend
from ..engine_builder.graph.onnx_export import example_inputs
from ..engine_builder.store.manifest import Manifest
from ..engine_builder.store.store import Plan, describe_files
from ..pipeline.models.checkpoints.diffusers_folder import Checkpoint, Part
from ..pipeline.models.wan.model import Wan21
from ..pipeline.models.wan.networks import PRODUCTS
from ..pipeline.quality.similarity import latents_similarity
from ..runtime.clip_sizes import clip_sizes
from .ladder.flops import count_tflop
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .ladder.measure import GIB, free_memory, gpu_state, sample_ms, step_figures

RESULTS = Path(__file__).resolve().parent / "results"
PRECISION = "bf16"
GOODBYE_S = 60.0
"""Seconds that a child has for its table of kernels, once all rounds are measured."""
WIDTH, HEIGHT, NUM_FRAMES = 832, 480, 81
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 40,
        "attention_head_dim": 128,
        "in_channels": 36,
        "out_channels": 16,
        "text_dim": 4096,
        "freq_dim": 256,
        "ffn_dim": 13824,
        "num_layers": 40,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": 1280,
        "added_kv_proj_dim": 5120,
        "rope_max_seq_len": 1024,
    },
    "image_encoder": {"image_size": 224, "patch_size": 14, "hidden_size": 1280},
}
"""Wan 2.1 I2V 14B as published (Wan-AI/Wan2.1-I2V-14B-480P-Diffusers), as far as its denoiser depends on it."""


class RandomWan(Wan21):
    """Wan 2.1's denoiser at its published size, with weights drawn on a device."""

    def __init__(self, device: torch.device, layers: int) -> None:
        configs = {**CONFIGS, "transformer": {**CONFIGS["transformer"], "num_layers": layers}}
        nowhere = Path(tempfile.gettempdir()) / "no-checkpoint"
        parts = {name: Part(name, nowhere / name, config, {}) for name, config in configs.items()}
        super().__init__(Checkpoint(nowhere, parts))
        self._device = device

    def networks(self) -> Mapping[str, Any]:
        return {"core": self._denoiser("transformer")}

    def part(self, name: str, precision: str) -> Any:
        from diffusers import WanTransformer3DModel

        torch.manual_seed(0)
        with torch.device(self._device):
            torch.set_default_dtype(torch.bfloat16)
            try:
                network: Any = WanTransformer3DModel.from_config(dict(self.config(name)))
            finally:
                torch.set_default_dtype(torch.float32)
        for path, module in network.named_modules():
            if any(kept in path.split(".") for kept in WanTransformer3DModel._keep_in_fp32_modules or ()):
                module.float()
        for path, parameter in network.named_parameters():
            if path.endswith("scale_shift_table"):
                parameter.data = parameter.data.float()
        return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Setting:
    """Size of the measured call: the number of layers is the published one but in tests."""

    width: int = WIDTH
    height: int = HEIGHT
    num_frames: int = NUM_FRAMES
    layers: int = CONFIGS["transformer"]["num_layers"]

    def sizes(self, model: RandomWan) -> dict[str, int]:
        """Every named dimension of a call without guidance."""
        return clip_sizes(model, self.width, self.height, self.num_frames, guided=False)


class Row(ABC):
    """A way to call the denoiser, in a process of its own."""

    title: str

    def __init__(self, setting: Setting, device: torch.device) -> None:
        self.device = device
        self.model = RandomWan(device, setting.layers)
        self.spec = self.model.components["core"].spec
        self.sizes = setting.sizes(self.model)
        limits = self.spec.limits
        self.engine = EngineSpec(self.spec, limits.exact({n: self.sizes[n] for n in limits.ranges}), PRECISION)
        self.inputs = {name: x.to(device) for name, x in example_inputs(self.engine, self.sizes).items()}

    @abstractmethod
    def prepare(self) -> Callable[[], torch.Tensor]:
        """The call, compiled and run once."""


class Eager(Row):
    """diffusers' transformer by its own forward."""

    title = "diffusers, eager"

    def prepare(self) -> Callable[[], torch.Tensor]:
        network = self.compiled(self.model.part("transformer", PRECISION))
        given = self.inputs
        arguments = {
            "hidden_states": torch.cat([given["sample"], given["condition"]], dim=1),
            "timestep": given["timestep"],
            "encoder_hidden_states": given["text_states"],
            "encoder_hidden_states_image": given["image_states"],
        }

        def call() -> torch.Tensor:
            with torch.no_grad():
                return network(**arguments, return_dict=False)[0]

        call()
        return call

    def compiled(self, network: Any) -> Any:
        """The network as it is."""
        return network


class Compiled(Eager):
    """The same under torch.compile."""

    title = "torch.compile"

    def compiled(self, network: Any) -> Any:
        return torch.compile(network)


class Engine(Row):
    """The pack's engine."""

    title = "AOTInductor"

    def rewrites(self) -> tuple[str, ...]:
        """The rewrites of the engine: those that pay here."""
        return self.model.rewrites("core", InductorBackend.name)

    def prepare(self) -> Callable[[], torch.Tensor]:
        backend = InductorBackend(self.device)
        self.engine = replace(self.engine, rewrites=self.rewrites())
        network = self.model.load("core", PRECISION, self.engine.rewrites)
        folder = Path(tempfile.mkdtemp(prefix="i2v-call-"))
        backend.build(network, self.engine, folder, lambda stage, _: _tell(f"{self.title}: {stage}"))
        plan = Plan(folder, Manifest(self.engine, backend.target(self.device), describe_files(folder), None, 0.0, ""))
        runner: Runner = backend.load(plan, self.engine, lambda: network, self.device)
        self.place(runner, network)
        runner.load()

        def call() -> torch.Tensor:
            return runner(self.inputs)["prediction"]

        call()
        return call

    def place(self, runner: Runner, network: torch.nn.Module) -> None:
        """Puts the weights where the row has them before the engine is loaded."""


class Unfused(Engine):
    """The same engine without rewrites."""

    title = "AOTInductor, no rewrites"

    def rewrites(self) -> tuple[str, ...]:
        return ()


class ProductsApart(Engine):
    """The same engine without the products that do more than multiply."""

    title = "AOTInductor, without fused products"

    def rewrites(self) -> tuple[str, ...]:
        return tuple(name for name in super().rewrites() if name != PRODUCTS)


class Streamed(Engine):
    """The engine with no block of its own on the GPU: each is brought from host memory at each call."""

    title = "AOTInductor, every block streamed"
    room_bytes = 0

    def place(self, runner: Runner, network: torch.nn.Module) -> None:
        network.to("cpu")
        free_memory(self.device)
        runner.room_bytes = self.room_bytes


class HalfStreamed(Streamed):
    """The engine with every other block on the GPU."""

    title = "AOTInductor, half of the blocks streamed"
    room_bytes = 17 << 30


ROWS: dict[str, type[Row]] = {
    "eager": Eager,
    "compile": Compiled,
    "inductor": Engine,
    "unfused": Unfused,
    "products-apart": ProductsApart,
    "half-streamed": HalfStreamed,
    "streamed": Streamed,
}


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench call", description=__doc__)
    add = top.add_argument
    add("--rows", type=lambda text: text.split(","), default=list(ROWS), metavar="NAME,...", help=", ".join(ROWS))
    add("--samples", type=int, default=5, metavar="N", help="calls of each row in each round (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="times that all rows are measured, in turn (%(default)s)")
    add("--minutes", type=float, default=30.0, metavar="M", help="for preparing; rows that are not ready are left out")
    add("--layers", type=int, default=Setting.layers, metavar="N", help="of the transformer (%(default)s)")
    add("--size", default=f"{WIDTH}x{HEIGHT}", metavar="WxH", help="pixels (%(default)s)")
    add("--frames", type=int, default=NUM_FRAMES, metavar="N", help="of the clip (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="call.json goes here (%(default)s)")
    add("--kernels", type=Path, metavar="DIR", help="each row's GPU kernels with their times go here, as NAME.txt")
    add("--commit", metavar="TEXT", help="what was measured, where this is no checkout")
    add("--child", help=argparse.SUPPRESS)
    add("--reference", type=Path, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str]) -> int:
    """Measures the rows; 0 when each that was asked for gave its figures, else 1."""
    options = parser().parse_args(argv)
    width, height = map(int, options.size.split("x"))
    setting = Setting(width, height, options.frames, options.layers)
    if options.child:
        return _child(ROWS[options.child](setting, default_device()), options)
    with tempfile.TemporaryDirectory(prefix="i2v-call-") as folder:
        rows = _measured(argv, options, Path(folder) / "reference.safetensors")
    _write(options, setting, rows)
    return 0 if all("step_ms" in rows.get(name, {}) for name in options.rows) else 1


def _child(row: Row, options: argparse.Namespace) -> int:
    """Prepares, reports it, and measures at each request."""
    started = time.monotonic()
    call = row.prepare()
    figures: dict[str, Any] = {"title": row.title, "prepare_s": time.monotonic() - started}
    free_memory(row.device)
    _tell("ready")
    for _ in sys.stdin:
        if row.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(row.device)
        figures |= step_figures(sample_ms(call, options.samples, row.device)) | gpu_state(row.device)
        if row.device.type == "cuda":
            figures["gpu_peak_gib"] = torch.cuda.max_memory_allocated(row.device) / GIB
        figures |= _against(options.reference, call().float().cpu())
        free_memory(row.device)
        _tell(json.dumps(figures))
    if options.kernels is not None and row.device.type == "cuda":
        options.kernels.mkdir(parents=True, exist_ok=True)
        (options.kernels / f"{options.child}.txt").write_text(_kernels(call), "utf-8")
    return 0


def _kernels(call: Callable[[], torch.Tensor]) -> str:
    """A table of the GPU kernels of one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return found.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=90)


def _against(path: Path, result: torch.Tensor) -> dict[str, float]:
    """Likeness to the first row that was measured, which is kept for the others."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        save_file({"result": result.contiguous()}, path)
        return {}
    similarity = latents_similarity(load_file(path)["result"], result)
    return {name.removeprefix("latents_"): value for name, value in similarity.items()}


def _measured(argv: Sequence[str], options: argparse.Namespace, reference: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(PACK / "run.py"), "--inside", "bench", "call", *argv, "--reference", str(reference)]
    children = {
        name: subprocess.Popen(  # noqa: S603
            [*command, "--child", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in options.rows
    }
    deadline = time.monotonic() + 60 * options.minutes
    try:
        ready = [name for name, child in children.items() if _wait_ready(name, child, deadline)]
        rounds = [{name: _ask(name, children[name]) for name in ready} for _ in range(options.rounds)]
        steps = {name: [found[name]["step_ms"] for found in rounds if "step_ms" in found[name]] for name in ready}
        return {name: {**rounds[-1][name], "rounds_ms": steps[name]} for name in ready}
    finally:
        for child in children.values():
            _end(child)


def _end(child: subprocess.Popen[str]) -> None:
    """Lets a child that was asked for all it has come to its end, and ends any other."""
    try:
        child.communicate(timeout=GOODBYE_S)
    except (subprocess.TimeoutExpired, ValueError, OSError):
        child.kill()


def _wait_ready(name: str, child: subprocess.Popen[str], deadline: float) -> bool:
    """Passes on the child's output until it is ready; False when it has ended or the time is over."""
    left_s = min(max(deadline - time.monotonic(), 1.0), threading.TIMEOUT_MAX)
    timer = threading.Timer(left_s, child.kill)
    timer.start()
    try:
        assert child.stdout is not None  # noqa: S101 - it is a pipe
        for line in child.stdout:
            if line.strip() == "ready":
                return True
            _tell(line.rstrip())
        return False
    finally:
        timer.cancel()


def _ask(name: str, child: subprocess.Popen[str]) -> dict[str, Any]:
    """The figures of a child that is ready; empty when it fails."""
    assert child.stdin is not None and child.stdout is not None  # noqa: S101 - they are pipes
    try:
        child.stdin.write("go\n")
        child.stdin.flush()
        lines = iter(child.stdout.readline, "")
        figures: dict[str, Any] = json.loads(next((line for line in lines if line.startswith("{")), "{}"))
    except BrokenPipeError:
        figures = {}
    _tell(f"{name}: {figures}")
    return figures


def _write(options: argparse.Namespace, setting: Setting, rows: dict[str, dict[str, Any]]) -> None:
    meta = RandomWan(torch.device("meta"), setting.layers)
    tflop = count_tflop(meta.load("core", PRECISION), meta.components["core"].spec, setting.sizes(meta))
    for figures in rows.values():
        if "step_ms" in figures:
            figures["tflop_per_s"] = 1000 * tflop / figures["step_ms"]
    device = default_device()
    report = {
        "benchmark": "call",
        "date": now(),
        "commit": describe_commit(options.commit),
        "model": f"Wan 2.1 I2V 14B, {setting.width}x{setting.height}, {setting.num_frames} frames, {PRECISION}, "
        f"no guidance, {setting.layers} layers, random weights",
        "machine": describe_machine(device),
        "versions": describe_versions(),
        "tflop": tflop,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1)
    (options.out / "call.json").write_text(text + "\n", "utf-8")
    sys.stdout.write(text + "\n")


def _tell(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
