"""DDIM (Song et al. 2020, arXiv:2010.02502) whose every step is finite. Imported where a scheduler is made alone."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

RESCALED_STEPS = 400
"""Timesteps over which the dynamic rescale falls from 1 to its base."""


class ClampedDDIMScheduler(DDIMScheduler):
    """Diffusers' DDIM, with three differences.

    What the direction's root is taken of is never below 0. It is 0 in exact arithmetic where a step from pure noise
    adds noise (`eta` 1, zero terminal SNR), and rounds to less for many numbers of steps, which gives no number.
    A step leads to the next of the schedule's own timesteps, also where their distances are not all the same.
    With `dynamic_rescale_base` the estimate of the clean latents is scaled from step to step as DynamiCrafter's
    (Xing et al. 2023, arXiv:2310.12190); None leaves it as it is.
    """

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Any = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: Any = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: Any = "leading",
        rescale_betas_zero_snr: bool = False,
        dynamic_rescale_base: float | None = None,
    ) -> None:
        super().__init__(
            num_train_timesteps=num_train_timesteps,
            beta_start=beta_start,
            beta_end=beta_end,
            beta_schedule=beta_schedule,
            trained_betas=trained_betas,
            clip_sample=clip_sample,
            set_alpha_to_one=set_alpha_to_one,
            steps_offset=steps_offset,
            prediction_type=prediction_type,
            thresholding=thresholding,
            dynamic_thresholding_ratio=dynamic_thresholding_ratio,
            clip_sample_range=clip_sample_range,
            sample_max_value=sample_max_value,
            timestep_spacing=timestep_spacing,
            rescale_betas_zero_snr=rescale_betas_zero_snr,
        )
        self._previous: dict[int, int] = {}

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Divides the way into steps, each of which leads to the next."""
        super().set_timesteps(num_inference_steps, device)
        steps = self.timesteps.tolist()
        self._previous = dict(zip(steps, steps[1:], strict=False))

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> DDIMSchedulerOutput:
        """The latents of the next timestep, and the estimate of the clean ones, from a prediction at this one."""
        t = int(timestep)
        previous = self._previous.get(t)
        alpha = self.alphas_cumprod[t]
        alpha_next = self.final_alpha_cumprod if previous is None else self.alphas_cumprod[previous]
        clean, noise = self._clean_and_noise(model_output, sample, alpha)
        sigma, spread = _spreads(alpha, alpha_next, eta)
        x = alpha_next.sqrt() * clean * self._rescale(t, previous) + spread * noise
        if eta > 0:
            drawn = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x = x + sigma * drawn
        return DDIMSchedulerOutput(prev_sample=x, pred_original_sample=clean)

    def _clean_and_noise(
        self, prediction: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clean latents and the noise that a prediction stands for at x, formulas (9) and (12)."""
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        kind = self.config["prediction_type"]
        if kind == "epsilon":
            clean, noise = (x - spread * prediction) / signal, prediction
        elif kind == "v_prediction":
            clean, noise = signal * x - spread * prediction, signal * prediction + spread * x
        else:
            clean, noise = prediction, (x - signal * prediction) / spread
        if self.config["thresholding"]:
            clean = self._threshold_sample(clean)
        elif self.config["clip_sample"]:
            clean = clean.clamp(-self.config["clip_sample_range"], self.config["clip_sample_range"])
        return clean, noise

    def _rescale(self, t: int, previous: int | None) -> float:
        """Factor of the clean latents on the way from a timestep to the next; 1 at the last step, as published."""
        base = self.config["dynamic_rescale_base"]
        if base is None or previous is None:
            return 1.0
        return _scale(previous, base) / _scale(t, base)


def _spreads(alpha: torch.Tensor, alpha_next: torch.Tensor, eta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard deviation of the noise that a step adds, and of the noise that it keeps, formulas (12) and (16).

    In float32 as diffusers has it; from pure noise in float64, for there the kept noise may be the root of a difference
    that vanishes, of which float32 leaves its rounding.
    """
    if float(alpha) == 0:
        alpha, alpha_next = alpha.double(), alpha_next.double()
    added = eta * ((1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)).clamp(min=0).sqrt()
    kept = (1 - alpha_next - added**2).clamp(min=0).sqrt()
    return added.float(), kept.float()


def _scale(t: int, base: float) -> float:
    """Scale of the latents that a network with dynamic rescale was trained on, at a timestep."""
    return 1.0 + (base - 1.0) * min(t, RESCALED_STEPS - 1) / (RESCALED_STEPS - 1)
