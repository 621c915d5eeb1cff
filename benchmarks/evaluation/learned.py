"""Metrics of learned networks, through their own packages and weights where the user has them; nothing is fetched."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.errors import InputError
from .clips import JudgedClip

LEAST_SAMPLES = {"FID": 2048, "FVD": 400}
"""As many as the features have dimensions: below it their covariance has no full rank. Published figures take 10,000
pictures and 2,048 clips."""
PACKAGES = {
    "LPIPS": ("lpips", "pip install lpips"),
    "VBench": ("vbench", "pip install vbench, then vbench evaluate --videos_path with the clips saved as files"),
    "FVD": ("cd_fvd", "pip install cd-fvd, then its own command over two folders of clips"),
    "FID": ("pytorch_fid", "pip install pytorch-fid, then its own command over two folders of pictures"),
}


def check_samples(metric: str, count: int) -> None:
    """Raises InputError where a metric of distributions would be noise with so few samples."""
    least = LEAST_SAMPLES[metric]
    if count < least:
        raise InputError(f"{metric} needs at least {least} samples, found {count}: with fewer it is noise.")


def missing(clip_folder: Path | None, clips: int, frames: int) -> list[str]:
    """A sentence on each learned metric that is not taken, and why."""
    found = []
    for metric, (package, how) in PACKAGES.items():
        if metric in LEAST_SAMPLES:
            try:
                check_samples(metric, frames if metric == "FID" else clips)
            except InputError as error:
                found.append(str(error))
                continue
        if importlib.util.find_spec(package) is None:
            found.append(f"{metric} was not taken: its package {package} is not here ({how}).")
        elif metric != "LPIPS":
            found.append(f"{metric} was not taken here: {how.partition('then ')[2] or how}.")
        elif not lpips_weights().is_file():
            found.append(f"LPIPS was not taken: its weights are not in {lpips_weights()}.")
    if clip_folder is None:
        found.append("CLIPScore was not taken: name a folder of a CLIP model with --clip.")
    return found


def lpips_weights() -> Path:
    """The file of torchvision's AlexNet, where the package looks for it before it would load it from the network."""
    return Path(torch.hub.get_dir()) / "checkpoints" / "alexnet-owt-7be5be79.pth"


class Lpips:
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924) by its own package, over AlexNet."""

    def __init__(self) -> None:
        lpips: Any = importlib.import_module("lpips")
        self._network = lpips.LPIPS(net="alex", verbose=False).eval()

    @staticmethod
    def is_here() -> bool:
        """Whether the package and its weights are on this machine."""
        return importlib.util.find_spec("lpips") is not None and lpips_weights().is_file()

    def __call__(self, frames: torch.Tensor, reference: torch.Tensor) -> float:
        """The mean distance of two clips [frames, height, width, 3] in 0..1; 0 if equal."""
        pair = [each.movedim(-1, 1) * 2 - 1 for each in (frames, reference)]
        with torch.inference_mode():
            return float(self._network(*pair).mean())


class ClipScore:
    """CLIPScore (Hessel et al. 2021, arXiv:2104.08718) by a CLIP model in a folder of the user's."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPModel

        try:
            self._model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).eval()
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(f"Expected a CLIP model with safetensors in {folder}: {error}") from error

    def __call__(self, frames: torch.Tensor, prompt: str) -> float:
        """100 times the mean cosine of the frames [frames, height, width, 3] with the prompt, at least 0."""
        side = self._model.config.vision_config.image_size
        pixels = torch.nn.functional.interpolate(
            frames.movedim(-1, 1), (side, side), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean, std = (torch.tensor(each).reshape(1, 3, 1, 1) for each in (CLIP_MEAN, CLIP_STD))
        tokens = self._tokenizer([prompt], return_tensors="pt", truncation=True, max_length=77)
        with torch.inference_mode():
            given = {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}
            output = self._model(pixel_values=(pixels - mean) / std, **given)
        cosine = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
        return float(100 * cosine.clamp_min(0).mean())


CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""As CLIP was published: mean and deviation of its training pictures."""


def learned_figures(
    clips: Sequence[JudgedClip], frames_of: Any, variants: Sequence[str], exact: str, clip_folder: Path | None
) -> dict[str, dict[str, float]]:
    """Means of the learned metrics that are here, by variant."""
    lpips = Lpips() if Lpips.is_here() else None
    score = None if clip_folder is None else ClipScore(clip_folder)
    found: dict[str, dict[str, float]] = {}
    for variant in variants if lpips or score else ():
        made = [(clip, frames_of(clip, variant)) for clip in clips]
        row = found.setdefault(variant, {})
        if lpips is not None:
            row["lpips"] = sum(lpips(frames, frames_of(clip, exact)) for clip, frames in made) / len(made)
        if score is not None:
            row["clip_score"] = sum(score(frames, clip.request.prompt) for clip, frames in made) / len(made)
    return found
