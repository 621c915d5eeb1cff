"""python -m demo_model.training tokenizer | vae | motion | few-steps | assemble | evaluate | curve"""

import argparse
import json
import logging
import math
from pathlib import Path

import torch

from . import networks as nets
from .clips import View
from .loop import Plan
from .speed import prefer_channels_last
from .state import load_meta, load_tensors
from .vocabulary import captions

ROOT = Path(__file__).resolve().parent.parent.parent
SEED = 20261120
STAGES = ("vae", "motion", "few-steps")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from .evaluate import PARTS

    top = argparse.ArgumentParser(prog="training", description=__doc__)
    top.add_argument("command", choices=["tokenizer", *STAGES, "assemble", "evaluate", "curve"])
    top.add_argument("--folder", type=Path, default=ROOT / "demo_model", help="the checkpoint folder")
    top.add_argument("--states", type=Path, default=ROOT / "out" / "training", help="where runs keep their states")
    top.add_argument("--out", type=Path, default=ROOT / "out" / "evaluation")
    top.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    top.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES, help="whose weights to take, where trained")
    top.add_argument("--begin", type=Path, help="a checkpoint folder whose weights to start from")
    top.add_argument("--begin-parts", nargs="+", choices=nets.PARTS, default=nets.PARTS, help="which of its networks")
    top.add_argument("--keep-latents", action="store_true", help="keep those of the weights begun from")
    top.add_argument("--tiny", action="store_true", help="networks of a size for tests")
    top.add_argument("--pixels", type=int, default=128)
    top.add_argument("--frames", type=int, default=16)
    top.add_argument("--reach", type=float, default=1.0, help="how much of a clip training shows, up to 1")
    top.add_argument("--steps", type=int, default=10000)
    top.add_argument("--batch", type=int, default=64)
    top.add_argument("--rate", type=float, default=8e-4)
    top.add_argument("--seconds", type=float, default=math.inf, help="stop and save after this long")
    top.add_argument("--schedule-seconds", type=float, default=math.inf, help="training time over all calls")
    top.add_argument("--compile", action="store_true")
    top.add_argument("--first-clip", type=int, default=0, help="leave out this many training clips that a run had")
    top.add_argument("--profile", action="store_true", help="log where the time of a few steps goes")
    top.add_argument("--compact", type=Path, help="also leave a half-precision copy of the state here")
    top.add_argument("--count", type=int, default=400, help="camera clips of the evaluation")
    top.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="what to evaluate")
    top.add_argument("--guidance", type=float, default=3.0)
    top.add_argument("--sampling-steps", type=int, default=30)
    top.add_argument("--spacing", default="leading", help="of the sampling steps: trailing for few")
    top.add_argument("--half", action="store_true", help="evaluate in half precision")
    top.add_argument("--compare", action="store_true", help="also compare steps and precisions")
    return top


def plan(options: argparse.Namespace) -> Plan:
    """The stage's plan from the command line."""
    return Plan(
        folder=options.states / options.command, steps=options.steps, batch=options.batch, rate=options.rate,
        seconds=options.seconds, schedule_seconds=options.schedule_seconds, compile=options.compile,
        compact=options.compact / options.command if options.compact else None,
        first_clip=options.first_clip, profile=options.profile,
    )  # fmt: skip


def view_of(options: argparse.Namespace) -> View:
    """What training clips show, from the command line."""
    return View(options.pixels, options.frames, options.reach)


def fresh(options: argparse.Namespace) -> tuple[nets.Networks, nets.Sizes]:
    """Networks from the seed, with the weights of earlier stages."""
    sizes = nets.Sizes.tiny() if options.tiny else nets.Sizes()
    networks = nets.build(sizes, SEED)
    if options.begin:
        begun = nets.load_folder(options.begin, torch.device("cpu"), torch.float32)
        networks = networks.with_parts_of(begun, options.begin_parts, sizes)
    for stage in options.stages:
        meta = load_meta(options.states / stage)
        if meta is None or stage == options.command:
            continue
        learnt = load_tensors(options.states / stage, meta["files"]["ema"])
        for name, module in networks.parts().items():
            own = {k.removeprefix(f"{name}."): v for k, v in learnt.items() if k.startswith(f"{name}.")}
            if own:
                module.load_state_dict(own, strict=False)
    meta = load_meta(options.states / "vae")
    if meta is not None:
        networks.vae.register_to_config(scaling_factor=meta.get("scaling_factor", 1.0))
    return networks, sizes


def run_vae(options: argparse.Namespace) -> None:
    """Trains the autoencoder; the scaling factor is measured, or kept with the latents of the weights begun from."""
    from .clips import held_out_seeds, practise
    from .evaluate import first_frames
    from .measure import psnr
    from .sampler import decode, picture_latents
    from .train_vae import latent_scale, train_vae

    device = torch.device(options.device)
    networks, _ = fresh(options)
    run = train_vae(networks, plan(options), device, view_of(options), keep_latents=options.keep_latents)
    with torch.no_grad():
        for key, weight in run.trained.items():
            weight.copy_(run.ema[key])
    vae = networks.vae.eval().requires_grad_(False)
    scale = vae.config["scaling_factor"] if options.keep_latents else latent_scale(vae, device, view_of(options))
    for folder in (run.plan.folder, run.plan.compact):
        if folder is not None:
            meta = {**(load_meta(folder) or {}), "scaling_factor": scale}
            nets.write_text(folder / "state.json", json.dumps(meta, indent=1) + "\n")
    report(run.elapsed_s, run.step, device)
    whole = view_of(options).whole_pixels
    pictures = first_frames(practise(held_out_seeds(9000, 64, device)), whole)
    again = decode(networks, picture_latents(networks, pictures)[:, :, None])[:, 0]
    logging.info("held-out reconstruction %.2f dB, scaling factor %.4f", float(psnr(again, pictures).mean()), scale)


def run_motion(options: argparse.Namespace) -> None:
    """Trains the UNet and the encoders."""
    from .train_motion import train_motion

    device = torch.device(options.device)
    networks, _ = fresh(options)
    tokenizer = nets.load_tokenizer(options.folder)
    run = train_motion(networks, plan(options), device, tokenizer, view_of(options))
    report(run.elapsed_s, run.step, device)


def run_few_steps(options: argparse.Namespace) -> None:
    """Trains the UNet for few unguided steps."""
    from .train_few_steps import train_few_steps

    device = torch.device(options.device)
    networks, _ = fresh(options)
    run = train_few_steps(networks, plan(options), device, nets.load_tokenizer(options.folder), view_of(options))
    report(run.elapsed_s, run.step, device)


def report(elapsed_s: float, step: int, device: torch.device) -> None:
    """Logs the stage's steps, seconds and peak memory."""
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    logging.info("step %d after %.0f s in all, peak %.1f GiB", step, elapsed_s, peak)


def run_evaluate(options: argparse.Namespace) -> None:
    """Prints the table and leaves it beside the sheets."""
    import dataclasses

    from .evaluate import Judge, compare, evaluate

    device = torch.device(options.device)
    dtype = torch.float16 if options.half else torch.float32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tokenizer = nets.load_tokenizer(options.folder)
    judge = Judge(
        nets.load_folder(options.folder, device, dtype), tokenizer, device, options.sampling_steps, options.guidance,
        spacing=options.spacing,
    )  # fmt: skip
    figures = {"device": str(device), "dtype": str(dtype), **evaluate(judge, options.count, options.out, options.parts)}
    if options.compare:
        exact = dataclasses.replace(judge, networks=nets.load_folder(options.folder, device, torch.float32))
        half = dataclasses.replace(judge, networks=nets.load_folder(options.folder, device, torch.float16))
        others = {"float16, 30 steps": (half, 30), "float32, 50 steps": (exact, 50), "float32, 20 steps": (exact, 20)}
        figures["against_float32_30_steps"] = compare(dataclasses.replace(exact, steps=30), others, 16)
    for name, value in figures.items():
        print(f"{name:48} {value}")
    nets.write_text(options.out / "evaluation.json", json.dumps(figures, indent=2) + "\n")


def main() -> None:
    """Runs one command."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parser().parse_args()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    if options.compile:
        prefer_channels_last()
    if options.command == "tokenizer":
        nets.save_tokenizer(nets.train_tokenizer(captions()), options.folder / "tokenizer")
    elif options.command == "vae":
        run_vae(options)
    elif options.command == "motion":
        run_motion(options)
    elif options.command == "few-steps":
        run_few_steps(options)
    elif options.command == "assemble":
        networks, sizes = fresh(options)
        nets.save_folder(options.folder, networks, sizes)
    elif options.command == "evaluate":
        run_evaluate(options)
    else:
        from .sheets import save_curve

        states = {stage: load_meta(options.states / stage) for stage in STAGES}
        save_curve(options.folder / "curve.png", {name: meta["curve"] for name, meta in states.items() if meta})


if __name__ == "__main__":
    main()
