"""What one and two devices are compared by: a step of each family, and a clip of four steps; each in turn."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..common.errors import EngineError
from ..common.shapes import ShapeProfile
from ..common.spec import EngineSpec, Scope
from ..engine_builder.backends.eager import EagerBackend
from ..engine_builder.graph.onnx_export import example_inputs
from ..engine_builder.store.store import EngineStore
from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.dummies.full_size import FULL_SIZES, FullSize
from ..pipeline.dummies.wan import write_tiny_wan
from ..pipeline.models.base import VideoModel
from ..pipeline.models.model_networks import apart
from ..pipeline.models.registry import open_model
from ..pipeline.models.wan.model import Wan
from ..pipeline.quality.similarity import latents_similarity
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import encode_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.denoiser import Denoiser
from ..runtime.devices.token_group import TokenGroup, unserved
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .call_rows import CONFIGS
from .clip_stages import build_report, checkpoint_at, ignore, make_clip, picture
from .full_models import CLIP_H, UMT5_XXL, WAN21_VAE
from .ladder.measure import GIB, free_memory
from .measured_child import tell

EXCHANGE = Path(__file__).resolve().with_name("exchange_rank.py")
EAGER = EagerBackend.name
SMALL = "64 KB"
EXCHANGES = {"168 MB": (168 << 20, 50), SMALL: (64 << 10, 200)}
"""Bytes that each process gives, and how often: keys of a Wan's layer at 480p, and a small message."""
WARM_UP = 3
ONE_DEVICE = "one device"
"""Words of each note that says that two devices have become one."""
PROMPT = "a boat drifts on a lake"
_WAN: dict[str, Any] = {
    "transformer": CONFIGS["transformer"],
    "image_encoder": CLIP_H,
    "vae": WAN21_VAE,
    "text_encoder": UMT5_XXL,
}
WAN = "wan21-14b-random"
CHECKPOINTS: dict[str, FullSize] = {
    **FULL_SIZES,
    WAN: FullSize(partial(write_tiny_wan, kind="wan21"), _WAN, "bf16"),
}
"""By name. Wan's takes 40 GiB of disk."""


@dataclass(frozen=True)
class Case:
    """A row: a checkpoint, a clip's size and its guidance, and the name of the flat figure.

    With `steps` it is a clip of so many steps from picture to file, without it one step.
    """

    checkpoint: str
    size: ClipSize
    guidance_scale: float
    figure: str
    steps: int = 0


LAKE = ClipSize(832, 480, 81)
CASES = {
    "svd": Case("svd-xt-random", ClipSize(1024, 576, 25), 3.0, "svd_ratio"),
    "i2vgen": Case("i2vgen-xl-random", ClipSize(512, 512, 16), 9.0, "i2vgen_xl_ratio"),
    "wan-guided": Case(WAN, LAKE, 5.0, "wan_guided_ratio"),
    "wan": Case(WAN, LAKE, 1.0, "wan_ratio"),
    "four-steps": Case(WAN, LAKE, 1.0, "four_steps_ratio", steps=4),
}
TINY = {Wan: ClipSize(64, 96, 9), VideoModel: ClipSize(64, 64, 4)}
Row = dict[str, Any]


def measure(case: Case, devices: Sequence[torch.device], options: argparse.Namespace) -> Row:
    """One device and two in turn: milliseconds, their ratio, the results' likeness, and the memory of each GPU."""
    started = time.monotonic()
    folder = _checkpoint(case.checkpoint, options, devices[0])
    model = open_model(folder)
    model.take_digests(lambda _: None)
    size = next(size for kind, size in TINY.items() if isinstance(model, kind)) if options.tiny else case.size
    one = _engines(model, devices[0], options)
    group = TokenGroup(one, devices, worker=EXCHANGE) if unserved(one, len(devices)) is None else None
    two = one.beside(_engines(apart(model), devices[1], options), group)
    _told(f"checkpoint ready after {time.monotonic() - started:.0f} s")
    row: Row = {"checkpoint": case.checkpoint, "size": list(size), "guidance_scale": case.guidance_scale}
    try:
        work = _clip if case.steps else _step
        with tempfile.TemporaryDirectory(prefix="i2v-two-gpus-") as scratch:
            row |= _in_turn(work, (one, two), case, size, Path(scratch), options)
        if group is not None and group.processes.are_alive:
            row["exchange"] = _exchanges(group, [SMALL] if options.tiny else list(EXCHANGES))
        row["seconds"] = time.monotonic() - started
        return row
    finally:
        two.unload()
        for device in devices:
            free_memory(device)


Call = Callable[[], torch.Tensor]
Begin = Callable[[], Call]
"""Function that begins a block of calls: both ways share weights, so that each asks for its runners anew."""


def _in_turn(
    work: Callable[..., Begin],
    sets: tuple[EngineSet, EngineSet],
    case: Case,
    size: ClipSize,
    scratch: Path,
    options: argparse.Namespace,
) -> Row:
    """The figures of both sets of engines: blocks of calls, one device and two by turns."""
    names, devices = ("one", "two"), (sets[0].device, sets[1].second.device if sets[1].second else sets[0].device)
    conditioning = None if case.steps else _conditioning(sets[0], size)
    blocks: dict[str, list[float]] = {name: [] for name in names}
    results, row = dict[str, torch.Tensor](), Row()
    begins: dict[str, Begin] = {}
    for name, engines in zip(names, sets, strict=True):
        began = time.monotonic()
        begins[name] = work(engines, case, size, conditioning, scratch)
        call = begins[name]()
        for _ in range(1 if case.steps else WARM_UP):
            results[name] = call().float().cpu()
        row[f"{name}_ready_s"] = time.monotonic() - began
        row[f"{name}_ran"] = engines.describe(engines.model.denoiser)
        row[f"{name}_notes"] = engines.take_notes()
        _told(f"{name}: {row[f'{name}_ran']}, ready after {row[f'{name}_ready_s']:.0f} s")
    for _ in range(options.rounds):
        for name in names:
            blocks[name].append(_block_ms(begins[name](), 1 if case.steps else options.samples, devices))
            _told(f"{name}: {blocks[name][-1]:.1f} ms")
    row |= {f"{name}_ms": found for name, found in blocks.items()}
    row["ratio"] = statistics.median(blocks["one"]) / statistics.median(blocks["two"])
    row["best_ratio"] = min(blocks["one"]) / min(blocks["two"])
    row["likeness"] = latents_similarity(results["one"], results["two"])
    row["used_gib"] = {str(device): _used_gib(device) for device in devices}
    given_up = next((note for note in [*row["two_notes"], *sets[1].take_notes()] if ONE_DEVICE in note.lower()), None)
    if given_up is not None:
        raise EngineError(f"Expected two devices, found one: {given_up}")
    return row


def _step(engines: EngineSet, case: Case, size: ClipSize, conditioning: Conditioning, scratch: Path) -> Begin:
    """A step of a clip with that conditioning."""
    denoising = Denoising(0, case.guidance_scale, SamplerSettings(2, engines.model.schedulers[0]))
    plan = plan_sampling(plan_clip(engines, size), denoising)
    x = engines.model.noise(*size, torch.Generator().manual_seed(0)).to(engines.device)
    t = torch.tensor(500.0)

    def begin() -> Call:
        denoiser = Denoiser(plan, conditioning)
        denoiser(x, t)  # copies what stays the same for the clip
        return lambda: denoiser(x, t)

    return begin


def _clip(engines: EngineSet, case: Case, size: ClipSize, conditioning: None, scratch: Path) -> Begin:
    """A clip from picture to file; nothing is taken from a cache. Gives the latents."""
    denoising = Denoising(0, case.guidance_scale, SamplerSettings(case.steps, engines.model.schedulers[0]))
    request = ClipRequest(picture(), PROMPT, "", *size, 16)

    return lambda: lambda: make_clip(engines, request, denoising, scratch / "clip.mp4")


def _conditioning(engines: EngineSet, size: ClipSize) -> Conditioning:
    """A clip's conditioning: of a Wan random tensors, to load no encoder for a step."""
    model = engines.model
    if not isinstance(model, Wan):
        request = ClipRequest(picture(), PROMPT, "", *size, 8)
        eager = EngineSet(
            model, engines.store, EnginePolicy(EAGER), engines.device
        )  # encoders are not built for a step
        found = encode_clip(plan_clip(eager, size), request, ConditioningCache(None), ignore)
        eager.unload()
        return found
    spec = EngineSpec(model.components[model.denoiser].spec, ShapeProfile(), "fp32")
    sizes = dict(plan_clip(engines, size).sizes)
    clip = {each.name for each in spec.network.inputs if each.scope is Scope.CLIP}
    both, single = (example_inputs(spec, {**sizes, "batch": batch}) for batch in (2, 1))
    tensors = {name: both[name] if name == "text_states" else single[name] for name in clip}
    if "first_frame" in tensors or "condition" not in tensors:
        raise ValueError(f"Expected a Wan with a condition beside the noise, found {sorted(tensors)}.")
    return Conditioning(model.family, *size, 16, tensors, (), "encoded", 0.0)


def _block_ms(call: Call, count: int, devices: Sequence[torch.device]) -> float:
    """Mean milliseconds of so many calls in a row, until both devices are done."""
    _wait(devices)
    started = time.perf_counter()
    for _ in range(count):
        call()
    _wait(devices)
    return 1000 * (time.perf_counter() - started) / count


def _wait(devices: Sequence[torch.device]) -> None:
    for device in devices:
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def _exchanges(group: TokenGroup, names: Sequence[str]) -> Row:
    """Gathers between the processes: seconds of one, and GB/s that each process receives from the others."""
    found: Row = {}
    for words in names:
        size_bytes, count = EXCHANGES[words]
        seconds = group.processes.ask({"exchange": size_bytes, "count": count})[0]["seconds"]
        received = size_bytes * (len(group.devices) - 1)
        found[words] = {"us": 1e6 * seconds, "gb_per_s": received / seconds / 1e9}
        _told(f"exchange of {words}: {found[words]}")
    return found


def peer_copy(devices: Sequence[torch.device]) -> Row:
    """A copy of 256 MiB between two devices: GB/s, and whether one reads the other's memory directly."""
    if devices[0].type != "cuda":
        return {}
    there = torch.empty(256 << 20, dtype=torch.uint8, device=devices[0])
    here = torch.empty_like(there, device=devices[1])
    here.copy_(there)
    _wait(devices)
    started, count = time.perf_counter(), 20
    for _ in range(count):
        here.copy_(there, non_blocking=True)
    _wait(devices)
    seconds = (time.perf_counter() - started) / count
    return {
        "gb_per_s": there.nbytes / seconds / 1e9,
        "is_direct": torch.cuda.can_device_access_peer(devices[0], devices[1]),
    }


def _used_gib(device: torch.device) -> float | None:
    """Memory of a GPU that all processes use."""
    if device.type != "cuda":
        return None
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    return (total_bytes - free_bytes) / GIB


def _engines(model: VideoModel, device: torch.device, options: argparse.Namespace) -> EngineSet:
    policy = EnginePolicy(options.backend, shapes=options.shapes)
    return EngineSet(model, EngineStore(options.store), policy, device, report=build_report())


def _checkpoint(name: str, options: argparse.Namespace, device: torch.device) -> Path:
    folder = options.checkpoints / (f"{name}-tiny" if options.tiny else name)
    return checkpoint_at(folder, CHECKPOINTS[name], device, tiny=options.tiny)


def _told(line: str) -> None:
    with suppress(BrokenPipeError):
        tell(f"  {line}")
