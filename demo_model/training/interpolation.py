"""Trains the pack's own interpolation network on procedural clips, and measures it on held-out ones.

    python run.py train-interpolation --minutes 20 --compile --out out/interpolation

All of it, with drawing, compiling and measuring, is done when the minutes are over. The folder gets the weights
(`interpolation.safetensors`, half precision, published names), `figures.json`, `curve.png`, a sheet to look at, and the
state that a second call goes on from. Packages: torch, numpy, pillow and safetensors.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...pipeline.filters.rife import Rife, open_rife
from .interpolation_clips import Pool, Triplets
from .interpolation_measure import measure, save_pairs
from .loop import Plan, Run
from .networks import write_text
from .painting import Brush
from .sheets import save_curve
from .speed import prefer_channels_last
from .state import save_tensors

log = logging.getLogger(__name__)
ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 20261130
FALL = 0.8  # weight of a block's picture beside the next block's
SMOOTH = 1e-7  # below its square root an error counts by its square
FLOW_WEIGHT, LEAST_FLOW_WEIGHT = 0.3, 0.005  # of the flow's error, at the start and from FLOW_SHARE of the run on
FLOW_SHARE = 0.35
DECIBEL_WEIGHT = 0.002  # of the logarithm of the squared error, which is what is judged
FLOOR = 3e-7  # squared error, 65 dB, below which the logarithm no longer falls
MEASURING_S = 40.0  # kept of the minutes for measuring and writing


class Loss(nn.Module):
    """The network with its loss, as one function to compile."""

    def __init__(self, network: Rife) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Triplets, flow_weight: Tensor) -> Tensor:
        """Error of every block's picture and flow, the last block's the most, and the last picture's decibels."""
        network = self.network
        known = network.encode(batch.first), network.encode(batch.second)
        total, weight = torch.zeros((), device=batch.first.device), FALL ** (len(network.flow.scales) - 1)
        sure = batch.sure.sum().clamp_min(1)
        error = batch.between
        for estimate in network.flow.estimates(batch.first, batch.second, *known, batch.time):
            error = estimate.blend() - batch.between
            moved = (F.smooth_l1_loss(estimate.flow, batch.flow, reduction="none") * batch.sure).sum() / sure
            total = total + weight * (torch.sqrt(error.square() + SMOOTH).mean() + flow_weight * moved)
            weight = weight / FALL
        return total + DECIBEL_WEIGHT * torch.log(error.square().mean((1, 2, 3)) + FLOOR).mean()


def start(seed: int = SEED, begin: Path | None = None) -> Rife:
    """A network from a seed whose first guess is hardly any motion and an even blend, or with the weights of a file."""
    if begin is not None:
        from safetensors.torch import load_file

        return open_rife(load_file(begin)).float()
    torch.manual_seed(seed)
    network = Rife()
    with torch.no_grad():
        for index in range(len(network.flow.blocks)):
            network.get_parameter(f"flow.blocks.{index}.lastconv.0.weight").mul_(0.1)
            network.get_parameter(f"flow.blocks.{index}.lastconv.0.bias").zero_()
    return network


def flow_weight(progress: float, first: float = FLOW_WEIGHT) -> float:
    """Weight of the flow's error by the share of the run that is over: without it a network first learns to blend."""
    return max(first * (1 - progress / FLOW_SHARE), LEAST_FLOW_WEIGHT)


def train(
    network: Rife, plan: Plan, pool: Pool, device: torch.device, pixels: int, first_weight: float = FLOW_WEIGHT
) -> Run:
    """Trains the network; its averaged weights are the run's `ema`."""
    network.to(device).train()
    run = Run(plan, {"network": network}, {"stage": "interpolation"})
    loss = Loss(network)
    step_loss = torch.compile(loss, dynamic=False) if plan.compile else loss
    generator = torch.Generator(device)

    def loss_of(step: int) -> Tensor:
        with torch.no_grad():
            pool.at(step)
            generator.manual_seed(step)
            batch = pool.draw(plan.batch, pixels, generator)
        return step_loss(batch, torch.tensor(flow_weight(run.progress(), first_weight), device=device))

    run.go(loss_of)
    return run


def averaged(network: Rife, run: Run) -> Rife:
    """The network with the averaged weights."""
    with torch.no_grad():
        for key, weight in run.trained.items():
            weight.copy_(run.ema[key])
    return network.eval()


def finish(network: Rife, run: Run, folder: Path, clips: int, device: torch.device) -> None:
    """Writes the weights and measures them as they were written: in half precision."""
    name = save_tensors(folder, "interpolation", network.published(), torch.float16)[0]
    (folder / name).replace(folder / "interpolation.safetensors")
    rounded = Rife().to(device)
    rounded.load_state_dict({key: value.half().float() for key, value in network.state_dict().items()})
    figures = {"step": run.step, "batch": run.plan.batch, "elapsed_s": round(run.elapsed_s, 1), "device": str(device)}
    figures |= measure(rounded.eval(), clips, device)
    write_text(folder / "figures.json", json.dumps(figures, indent=2) + "\n")
    for key, value in figures.items():
        log.info("%s: %s", key, value)
    save_curve(folder / "curve.png", {"interpolation": run.curve[1:] or run.curve})
    save_pairs(folder / "sheet.png", rounded, device)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser("run.py train-interpolation", description=__doc__)
    top.add_argument("--out", type=Path, default=ROOT / "out" / "interpolation")
    top.add_argument("--minutes", type=float, default=20.0, help="all of it takes this long")
    top.add_argument("--steps", type=int, default=10_000_000, help="or ends at this step")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    top.add_argument("--batch", type=int, default=64)
    top.add_argument("--pixels", type=int, default=192, help="edge of the training pictures, a multiple of 64")
    top.add_argument("--rate", type=float, default=6e-4)
    top.add_argument("--chunk", type=int, default=128, help="clips that are drawn at once")
    top.add_argument("--chunks", type=int, default=48, help="chunks that the pool holds")
    top.add_argument("--every", type=int, default=96, help="steps until a chunk is replaced")
    top.add_argument("--first-clip", type=int, default=0, help="leave out this many clips that another run had")
    top.add_argument("--clips", type=int, default=192, help="held-out clips to measure on")
    top.add_argument("--begin", type=Path, help="weights to start from, in place of the seed's")
    top.add_argument("--flow-weight", type=float, default=FLOW_WEIGHT, help="of the flow's error, at the start")
    top.add_argument("--compile", action="store_true")
    top.add_argument("--profile", action="store_true", help="log where the time of a few steps goes")
    return top


def main(arguments: list[str]) -> int:
    """Trains until the minutes are over, then writes and measures."""
    began = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parser().parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    if options.compile:
        prefer_channels_last()
        torch._dynamo.config.suppress_errors = True  # the minutes are better spent without a compiler than not at all
    pool = Pool(device, options.chunk, options.chunks, options.every, options.first_clip, Brush.on(device))
    pool.at(0)
    seconds = options.minutes * 60 - MEASURING_S - (time.monotonic() - began)
    plan = Plan(
        folder=options.out / "state", steps=options.steps, batch=options.batch, rate=options.rate,
        schedule_seconds=max(seconds, 1.0), compile=options.compile, profile=options.profile,
    )  # fmt: skip
    run = train(network := start(begin=options.begin), plan, pool, device, options.pixels, options.flow_weight)
    finish(averaged(network, run), run, options.out, options.clips, device)
    return 0
