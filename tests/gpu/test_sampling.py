"""The sampler's loop on a GPU: nothing in it waits for the device."""

import torch

from i2v_tensorrt.pipeline.denoising.sampler import sample
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings, make_scheduler
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import SCHEDULER


def test_no_step_waits_for_the_device() -> None:
    """PyTorch raises at whatever makes the CPU wait; the loop's own pace is kept by an event, which is not one."""
    settings = SamplerSettings(10)
    scheduler = make_scheduler(settings, SCHEDULER)
    noise, generator = torch.randn(4, 4, 8, 8, device="cuda"), torch.Generator()
    steps = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x * t.to("cuda", non_blocking=True).float() / 1000

    torch.cuda.set_sync_debug_mode("error")
    try:
        sample(denoise, scheduler, noise, settings, generator, lambda done, *_: steps.append(done))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert steps == list(range(1, 11))
