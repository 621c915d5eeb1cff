"""The prompts of `run.py bench cards`, and the models that they run."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common import workflow_names
from ..common.pack_paths import PACK
from ..pipeline.dummies.full_size import write_full_checkpoint
from ..pipeline.dummies.wan import write_tiny_wan
from ..pipeline.request import ClipSize
from ..remote.comfyui.server import ComfyHost, link_pack
from .live import CONDITIONING, ENGINE_LOADER, FULL, LOADER, SAMPLER, Prompt

SVD = "svd-xt-random"
TINY_WAN = "tiny-wan21"
CORE_MODEL = "tiny_wan22_a14b"
CORE_MODELS = PACK / "tests" / "live" / "core_models.py"
PROBES = PACK / "tests" / "live" / "probe_nodes.py"
"""A node that gives the outputs of a text encoder of billions of weights."""
NO_PROMPTS = "The models of ComfyUI's own need the folder tests, which {} has not."
NO_ENGINES = "none"
Changes = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A prompt to be run on each card, and its description."""

    name: str
    describes: str
    prompt: Prompt


def cases(engines: str) -> list[Case]:
    """All of them, the quick start first; the pack's own with that policy for missing engines, or with none at all."""
    full = {
        LOADER: {"checkpoint": FULL},
        CONDITIONING: {"width": 512, "height": 512, "num_frames": 16, "fps": 16},
        SAMPLER: {"steps": 10, "guidance_scale": 9.0},
    }
    svd = {LOADER: {"checkpoint": SVD}, CONDITIONING: {"num_frames": 14}, SAMPLER: {"steps": 4}}
    wan = {
        LOADER: {"checkpoint": TINY_WAN},
        CONDITIONING: {"width": 64, "height": 64, "num_frames": 5},
        SAMPLER: {"steps": 3},
    }
    policy = {ENGINE_LOADER: {"backend": "eager"} if engines == NO_ENGINES else {"on_missing": engines}}
    return [
        Case("quick start", "the bundled model as shipped", shipped(workflow_names.QUICK_START, policy)),
        Case("I2VGen-XL", "512x512, 16 frames, 10 steps", shipped(workflow_names.QUICK_START, full, policy)),
        Case("SVD-XT", "1024x576, 14 frames, 4 steps", shipped(workflow_names.SVD, svd, policy)),
        Case("tiny Wan 2.1", "64x64, 5 frames, 3 steps", shipped(workflow_names.WAN21, wan, policy)),
        Case("Compile Model", "a tiny Wan 2.2 of ComfyUI's own, 64x64, 9 frames, 3 steps", compile_model()),
    ]


def shipped(name: str, *changes: Changes) -> Prompt:
    """A workflow of the pack with other inputs."""
    prompt: Prompt = json.loads(workflow_names.api_workflow(name).read_text("utf-8"))
    for change in changes:
        for node, inputs in change.items():
            prompt[node]["inputs"].update(inputs)
    return prompt


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def core_wan(file: str, size: ClipSize, **tokens: int) -> Prompt:
    """ComfyUI's own graph for a Wan up to its sampler, with I2V Compile Model, whose engine is built if missing."""
    policy = {"on_missing": "build", "shape_policy": "exact", "backend": "auto"}
    picture = {"width": size.width, "height": size.height, "batch_size": 1}
    video = {**picture, "vae": ["vae", 0], "length": size.num_frames, "start_image": ["picture", 0]}
    return {
        "model": node("UNETLoader", unet_name=f"{file}.safetensors", weight_dtype="default"),
        "compiled": node("I2VTRT_CompileModel", model=["model", 0], **policy),
        "positive": node("ProbeConditioning", seed=1, width=4096, **tokens),
        "negative": node("ProbeConditioning", seed=2, width=4096, **tokens),
        "vae": node("VAELoader", vae_name="tiny_wan_vae.safetensors"),
        "picture": node("EmptyImage", **picture, color=0x3366AA),
        "video": node("WanImageToVideo", positive=["positive", 0], negative=["negative", 0], **video),
    }


def core_sampler(model: str, **settings: Any) -> dict[str, Any]:
    """ComfyUI's own sampler behind `core_wan`, of its model or of the compiled one."""
    fixed = {"sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
    links = {"positive": ["video", 0], "negative": ["video", 1], "latent_image": ["video", 2]}
    return node("KSampler", model=[model, 0], **settings, **fixed, **links)


def compile_model() -> Prompt:
    """That graph for a tiny Wan, from the picture to its frames."""
    return {
        **core_wan(CORE_MODEL, ClipSize(64, 64, 9), tokens=12, picture_tokens=257),
        "sampler": core_sampler("compiled", seed=1, steps=3, cfg=3.0),
        "frames": node("VAEDecode", samples=["sampler", 0], vae=["vae", 0]),
        "saved": node("PreviewImage", images=["frames", 0]),
        "said": node("PreviewAny", source=["compiled", 1]),
    }


def write_models(host: ComfyHost, models: Path, device: torch.device, *, full: bool = True) -> None:
    """All checkpoints in a `models` folder; with `full`, those of the published sizes with random weights too.

    Raises FileNotFoundError where the pack's tests are not there, and CalledProcessError.
    """
    if not CORE_MODELS.is_file():
        raise FileNotFoundError(NO_PROMPTS.format(PACK))
    for name in (FULL, SVD) if full else ():
        write_full_checkpoint(models / "i2v" / name, device, 0)
    if not (models / "i2v" / TINY_WAN).is_dir():
        write_tiny_wan(models / "i2v" / TINY_WAN, "wan21")
    write_by_comfyui(host, CORE_MODELS, models, models)


def write_by_comfyui(host: ComfyHost, script: Path, models: Path, target: Path) -> None:
    """Runs a script that writes models by ComfyUI's own classes to `target`; raises CalledProcessError."""
    command = [str(host.python), str(script), str(host.directory), str(target)]
    subprocess.run(command, cwd=models, check=True)  # noqa: S603 - the user's own ComfyUI


def base_folder(base: Path, models: Path) -> Path:
    """A new base folder for ComfyUI, which shares `models` with others, and has the nodes that the prompts need."""
    link_pack(PACK, base)
    link_pack(PROBES, base, PROBES.name)
    target = base / "models"
    if not target.exists():
        os.symlink(models.resolve(), target, target_is_directory=True)
    return base
