"""Optimizations that make the steps fast on a GPU without changing their results, and a profile of their time."""

import logging
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

log = logging.getLogger(__name__)
WARM, WATCHED, ROWS = 30, 4, 16  # steps before the profile, steps in it, kernels it names


class TimeConvolution(nn.Conv3d):
    """A (3, 1, 1) convolution as a plane one over frames and pixels: cuDNN has far better kernels for those."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, F, H, W) -> (B, C', F, H, W)."""
        plane = F.conv2d(input.flatten(3), self.weight.flatten(3), self.bias, padding=(1, 0))
        return plane.unflatten(3, input.shape[3:])


class ExactConvolution(nn.Conv2d):
    """A convolution that stays in float32 under autocast: bfloat16 steps in a picture are shimmer of their own."""

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', H, W), float32."""
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def flatten_time(module: nn.Module) -> None:
    """Turns every (3, 1, 1) convolution into a `TimeConvolution` with the same weights."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d) and part.kernel_size == (3, 1, 1) and part.padding == (1, 0, 0):
            part.__class__ = TimeConvolution


def prefer_channels_last() -> None:
    """Lets the compiler lay pictures out as tensor cores read them.

    Its own rule of thumb does not, as the last convolution has fewer channels out than in.
    """
    import torch._inductor.config as settings

    settings.force_layout_optimization = True


class Watch:
    """Profiles a few steps once the kernels are compiled, and logs the kernels that took the device's time."""

    def __init__(self, device: torch.device) -> None:
        self.cuda, self.steps, self.began = device.type == "cuda", 0, 0.0
        self.profile: torch.profiler.profile | None = None

    def tick(self) -> None:
        """Called before every step."""
        self.steps += 1
        if self.steps == WARM:
            self.start()
        elif self.steps == WARM + WATCHED and self.profile is not None:
            self.stop(self.profile)

    def start(self) -> None:
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.cuda:
            activities.append(torch.profiler.ProfilerActivity.CUDA)
            torch.cuda.synchronize()
        self.profile = torch.profiler.profile(activities=activities)
        self.profile.start()
        self.began = time.monotonic()

    def stop(self, profile: torch.profiler.profile) -> None:
        issued = time.monotonic() - self.began
        if self.cuda:
            torch.cuda.synchronize()
        done = time.monotonic() - self.began
        profile.stop()
        rows = [row for row in profile.key_averages() if not self.cuda or row.device_type.name == "CUDA"]
        own = {row.key: (row.self_device_time_total if self.cuda else row.self_cpu_time_total) for row in rows}
        log.info(
            "a step: %.1f ms to launch, %.1f ms in all, %.1f ms of kernels, %d launches (profiled)",
            1e3 * issued / WATCHED, 1e3 * done / WATCHED, sum(own.values()) / WATCHED / 1e3,
            sum(row.count for row in rows) / WATCHED,
        )  # fmt: skip
        for key, spent in sorted(own.items(), key=lambda item: -item[1])[:ROWS]:
            log.info("%8.2f ms %s", spent / WATCHED / 1e3, key[:90])
