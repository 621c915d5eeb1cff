"""Single files are known by what they hold, whatever their names, and others are passed over."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from i2v_tensorrt.pipeline.models.checkpoints.single_file import ALONE, WITH_ALL, single_file

Names = dict[str, tuple[int, ...]]
SVD: Names = {
    "input_blocks.0.0.weight": (4, 8, 3, 3),
    "input_blocks.1.1.time_stack.0.attn1.to_q.weight": (4, 4),
}
WAN: Names = {"head.modulation": (1, 2, 4), "patch_embedding.weight": (4, 36, 1, 2, 2)}
PICTURE: Names = {"img_emb.proj.1.weight": (4, 4)}
MODELS: dict[str, tuple[Names, str, str, str]] = {
    "svd": (SVD, "Stable Video Diffusion", ALONE, "the denoiser alone"),
    "svd_all": (
        {
            **{f"model.diffusion_model.{name}": shape for name, shape in SVD.items()},
            "first_stage_model.decoder.conv_out.time_mix_conv.weight": (3, 3, 3, 1, 1),
            "conditioner.embedders.0.open_clip.model.visual.conv1.weight": (4, 3, 2, 2),
            "conditioner.embedders.0.open_clip.model.visual.transformer.resblocks.0.attn.in_proj_weight": (12, 4),
        },
        "Stable Video Diffusion",
        WITH_ALL,
        "the denoiser and a VAE and an image encoder",
    ),
    "wan21": ({**WAN, **PICTURE}, "Wan 2.1", ALONE, "the denoiser alone"),
    "flf2v": (
        {**WAN, **PICTURE, "img_emb.emb_pos": (1, 514, 4)},
        "Wan 2.1 between a first and a last picture",
        ALONE,
        "the denoiser alone",
    ),
    "a14b": (WAN, "Wan 2.2 A14B, one of its two experts", ALONE, "the denoiser alone"),
    "5b": ({**WAN, "patch_embedding.weight": (4, 48, 1, 2, 2)}, "Wan 2.2 TI2V", ALONE, "the denoiser alone"),
}
OTHERS: dict[str, Names] = {
    "a picture model": {"input_blocks.0.0.weight": (4, 4, 3, 3)},
    "a UNet that paints over": {"input_blocks.0.0.weight": (4, 9, 3, 3), "a.time_stack.b": (1,)},
    "a Wan from text alone": {**WAN, "patch_embedding.weight": (4, 16, 1, 2, 2)},
    "a LoRA for Wan": {"blocks.0.self_attn.q.lora_A.weight": (4, 4), "head.modulation.diff": (1, 2, 4)},
}


def written(path: Path, names: Names) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, path)
    return path


@pytest.mark.parametrize("model", MODELS)
def test_a_model_is_known_by_its_tensors(tmp_path: Path, model: str) -> None:
    names, title, loader, content = MODELS[model]
    found = single_file(written(tmp_path / "mine.safetensors", names))
    assert found is not None
    assert (found.title, found.loader, found.content) == (title, loader, content)


@pytest.mark.parametrize("other", OTHERS)
def test_others_are_passed_over(tmp_path: Path, other: str) -> None:
    assert single_file(written(tmp_path / "svd_xt.safetensors", OTHERS[other])) is None


HEAD = b'{"head.modulation": {"shape": [1]}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"head",
        struct.pack("<Q", 1 << 62) + HEAD,
        struct.pack("<Q", len(HEAD)) + HEAD,
        struct.pack("<Q", 19) + b'["head.modulation"]',
        struct.pack("<Q", 23) + b'{"head.modulation": 500}'[:23],
        struct.pack("<Q", 24) + b'{"head.modulation": 500}',
    ],
)
def test_damaged_files_are_passed_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    assert single_file(path) is None
    assert single_file(tmp_path / "gone.safetensors") is None


def test_a_file_that_changes_is_looked_at_again(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    assert single_file(written(path, OTHERS["a Wan from text alone"])) is None
    path.unlink()
    assert single_file(written(path, WAN)) is not None
