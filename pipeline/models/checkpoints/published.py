"""Published checkpoints: where each is downloaded from, by the folder that workflows name."""

from __future__ import annotations

from pathlib import Path

PUBLISHED: dict[str, tuple[str, tuple[str, ...]]] = {
    "i2vgen-xl": ("ali-vilab/i2vgen-xl", ("*.json", "*.txt", "*fp16.safetensors")),
    "stable-video-diffusion-img2vid-xt": (
        "stabilityai/stable-video-diffusion-img2vid-xt",
        ("*.json", "*.fp16.safetensors"),
    ),
    "Wan2.2-TI2V-5B-Diffusers": ("Wan-AI/Wan2.2-TI2V-5B-Diffusers", ()),
    "Wan2.1-I2V-14B-480P-Diffusers": ("Wan-AI/Wan2.1-I2V-14B-480P-Diffusers", ()),
    "Wan2.2-I2V-A14B-Diffusers": ("Wan-AI/Wan2.2-I2V-A14B-Diffusers", ()),
}
"""Repository, and the files that are needed of it (all if none are named)."""


def download_command(name: str, root: Path) -> str | None:
    """The command that downloads a checkpoint into `root`; None for a name under which none is published."""
    if name not in PUBLISHED:
        return None
    repository, patterns = PUBLISHED[name]
    includes = "".join(f'--include "{pattern}" ' for pattern in patterns)
    return f'hf download {repository} {includes}--local-dir "{root / name}"'
