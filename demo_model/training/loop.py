"""The loop both stages share: learning rate, averaged weights, time limit, log and resumable state."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .speed import Watch
from .state import load_meta, load_tensors, save_state

log = logging.getLogger(__name__)
LOG_EVERY = 50
COOLDOWN = 0.4


@dataclass(frozen=True)
class Plan:
    """One stage's length and optimizer settings; the schedule spans all calls that share the state folder."""

    folder: Path
    steps: int
    batch: int
    rate: float
    seconds: float = math.inf
    schedule_seconds: float = math.inf
    save_seconds: float = 150.0
    warmup: int = 200
    ema: float = 0.999
    decay: float = 0.01
    compile: bool = False
    compact: Path | None = None
    first_clip: int = 0  # how many of the stage's training clips other runs have had
    profile: bool = False


@dataclass
class Run:
    """A stage in progress: modules by name, their optimizer, their averaged weights and the log so far."""

    plan: Plan
    modules: dict[str, nn.Module]
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.step = 0
        self.curve: list[list[float]] = []
        self.trained = {
            f"{name}.{key}": weight
            for name, module in self.modules.items()
            for key, weight in module.named_parameters()
            if weight.requires_grad
        }
        self.ema = {key: weight.detach().clone() for key, weight in self.trained.items()}
        cuda = next(iter(self.trained.values())).is_cuda
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()), lr=self.plan.rate, betas=(0.9, 0.99), weight_decay=self.plan.decay, fused=cuda
        )
        self.elapsed_s = self.before_s = 0.0
        self.began = time.monotonic()
        self.resume()

    def rate(self) -> float:
        """Linear warm-up, a plateau, and a linear fall to zero over the last COOLDOWN of steps or of time."""
        warm = min(1.0, (self.step + 1) / self.plan.warmup)
        return self.plan.rate * warm * min(1.0, max(0.0, 1 - self.progress()) / COOLDOWN)

    def progress(self) -> float:
        """Share of the schedule that is over, 0 to 1: of its steps or of its time."""
        return max(self.step / self.plan.steps, self.spent() / self.plan.schedule_seconds)

    def spent(self) -> float:
        """Seconds trained so far, in this call and those before."""
        return self.before_s + time.monotonic() - self.began

    def average(self) -> None:
        """Moves the averaged weights towards the current ones, faster while the run is young."""
        keep = min(self.plan.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.values()), [w.detach() for w in self.trained.values()], 1 - keep)

    def advance(self, loss: Tensor) -> None:
        """One optimizer step from a loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(self.trained.values()), 1.0)
        self.optimizer.step()
        self.average()
        self.step += 1

    def moments(self) -> dict[str, Tensor]:
        """The optimizer's tensors by parameter name."""
        held = {}
        for key, weight in self.trained.items():
            held |= {f"{key}|{name}": value for name, value in self.optimizer.state.get(weight, {}).items()}
        return held

    def save(self, folder: Path, compact: bool = False) -> None:
        """Writes the state; see `state.save_state`."""
        groups: dict[str, dict[str, Tensor]] = {
            "weights": dict(self.trained), "ema": self.ema, "moments": self.moments(),
        }  # fmt: skip
        meta = {
            **self.meta, "step": self.step, "steps": self.plan.steps, "batch": self.plan.batch,
            "rate": self.plan.rate, "elapsed_s": round(self.spent(), 1), "curve": self.curve,
        }  # fmt: skip
        save_state(folder, groups, meta, compact)

    def resume(self) -> None:
        """Takes up the state in the folder, if there is one; a compact one starts with fresh moments."""
        meta = load_meta(self.plan.folder)
        if meta is None:
            return
        for name, into in (("weights", self.trained), ("ema", self.ema)):
            found = load_tensors(self.plan.folder, meta["files"][name])
            with torch.no_grad():
                for key, weight in into.items():
                    weight.copy_(found[key])
        held = load_tensors(self.plan.folder, meta["files"].get("moments", []))
        for joined, value in held.items():
            key, name = joined.split("|")
            weight = self.trained[key]
            self.optimizer.state[weight][name] = (
                value if name == "step" and not weight.is_cuda else value.to(weight.device)
            )
        self.step, self.curve, self.elapsed_s = meta["step"], meta["curve"], meta["elapsed_s"]
        self.before_s = self.elapsed_s
        log.info("resumed at step %d of %d", self.step, self.plan.steps)

    def go(self, loss_of: Callable[[int], Tensor]) -> None:
        """Trains until the last step or the time limit, and saves at intervals and at the end."""
        self.began = saved = time.monotonic()
        total = torch.zeros(())
        watch = Watch(next(iter(self.trained.values())).device) if self.plan.profile else None
        while self.step < self.plan.steps:
            if watch:
                watch.tick()
            loss = loss_of(self.step)
            self.advance(loss)
            total = total.to(loss.device) + loss.detach()
            if self.step % LOG_EVERY == 0 or self.step == self.plan.steps:
                self.note(float(total) / ((self.step - 1) % LOG_EVERY + 1))
                total = torch.zeros(())
                if time.monotonic() - saved > self.plan.save_seconds:
                    saved = time.monotonic()
                    self.save(self.plan.folder)
                if time.monotonic() - self.began > self.plan.seconds or self.spent() > self.plan.schedule_seconds:
                    break
        self.elapsed_s = self.spent()
        self.save(self.plan.folder)
        if self.plan.compact:
            self.save(self.plan.compact, compact=True)

    def note(self, loss: float) -> None:
        """Adds a point to the curve, and logs it now and then."""
        self.curve.append([self.step, round(loss, 6)])
        if self.step % (LOG_EVERY * 4) == 0:
            log.info("step %d loss %.5f at %.0f s, rate %.2e", self.step, loss, self.spent(), self.rate())
