"""Measurement of seconds and memory by stage, milliseconds a call, kernels, and host memory."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import torch

WARM_UP_CALLS = 3
GIB = 1 << 30


def synchronize(device: torch.device) -> None:
    """Waits for the device's queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_memory(device: torch.device) -> None:
    """Frees memory without a reference."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class StageClock:
    """Seconds and peak GPU memory of the stages of one clip, one after the other."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}
        self.peak_gib: dict[str, float] = {}
        """PyTorch's own peak by stage."""
        self.used_gib: dict[str, float] = {}
        """Memory of the GPU in use by all processes at the end of the stage."""
        self._begin()

    def mark(self, stage: str) -> None:
        """Ends a stage."""
        synchronize(self.device)
        self.seconds[stage] = time.monotonic() - self._started
        if self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            self.peak_gib[stage] = torch.cuda.max_memory_allocated(self.device) / GIB
            self.used_gib[stage] = (total - free) / GIB
        self._begin()

    def _begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.init()  # a clock may begin before anything has touched the GPU
            torch.cuda.reset_peak_memory_stats(self.device)
        self._started = time.monotonic()


def sample_ms(call: Callable[[], object], count: int, device: torch.device) -> list[float]:
    """Milliseconds of `count` calls in a row, after some to warm up; by device events on a GPU."""
    for _ in range(WARM_UP_CALLS):
        call()
    synchronize(device)
    watch = CallWatch(device)
    for _ in range(count):
        watch(call)
    return watch.milliseconds()


class CallWatch:
    """Times calls without making the host wait for the device between them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._times: list[float] = []

    def __call__(self, call: Callable[[], object]) -> object:
        if self._device.type != "cuda":
            started = time.perf_counter()
            result = call()
            self._times.append(1000 * (time.perf_counter() - started))
            return result
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        result = call()
        after.record()
        self._events.append((before, after))
        return result

    def milliseconds(self) -> list[float]:
        """Of every call so far."""
        synchronize(self._device)
        return [*self._times, *(before.elapsed_time(after) for before, after in self._events)]


def step_figures(milliseconds: list[float]) -> dict[str, float]:
    """The figures of a row's denoiser call."""
    median = statistics.median(milliseconds)
    last = sorted(milliseconds)[max(0, -(-len(milliseconds) * 95 // 100) - 1)]
    return {"step_ms": median, "step_p95_over_median": last / median, "step_samples": len(milliseconds)}


def count_kernels(call: Callable[[], object], device: torch.device) -> int | None:
    """Kernels that one call runs on the GPU, copies and fills left out; None where there is no GPU."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    call()
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        call()
        synchronize(device)
    names = [event.name for event in profiler.events() or () if event.device_type == DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names) or None


def host_peaks() -> dict[str, float]:
    """Peak host memory of this process, and of the largest that it waited for."""
    if sys.platform == "win32":
        import psutil

        return {"host_peak_gib": psutil.Process().memory_info().peak_wset / GIB}
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    peaks = {"host_peak_gib": own * unit / GIB}
    return {**peaks, "build_host_peak_gib": children * unit / GIB} if children else peaks


def gpu_state(device: torch.device) -> dict[str, float]:
    """The GPU's clock and power now; empty where nvidia-smi gives none."""
    if device.type != "cuda":
        return {}
    values = query_gpu("clocks.sm,power.draw", device.index or 0)
    try:
        return dict(zip(("gpu_clock_mhz", "gpu_power_w"), map(float, values), strict=True))
    except ValueError:
        return {}


def gpu_before(device: torch.device) -> dict[str, float]:
    """GPU memory that other processes hold; to be called before this process touches the GPU."""
    values = query_gpu("memory.used", device.index or 0) if device.type == "cuda" else []
    with suppress(ValueError):
        return {"gpu_before_gib": float(values[0]) * (1 << 20) / GIB} if values else {}
    return {}


def query_gpu(fields: str, index: int) -> list[str]:
    """Values of an nvidia-smi query for one GPU, by its number here; empty where nvidia-smi cannot run."""
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", f"--id={_gpu_name(index)}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return []
    return [value.strip() for value in answer.stdout.strip().split(",")]


def _gpu_name(index: int) -> str:
    """What nvidia-smi calls the GPU of that number among those that this process sees."""
    seen = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return seen[index] if index < len(seen) and seen[index] else str(index)
