"""The colours of previews, where a checkpoint's latents have their own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.common.pack_paths import BUNDLED, PICTURE
from i2v_tensorrt.pipeline.models.latent_rgb import FILE_NAME, latent_rgb
from i2v_tensorrt.pipeline.models.registry import open_model


def test_most_checkpoints_have_none(tiny_folder: Path) -> None:
    assert latent_rgb(tiny_folder, 4) is None


@pytest.mark.parametrize(
    "rows", [None, [], [[0, 0, 0]] * 4, [[0, 0, 0]] * 6, [[0, 0]] * 5, [[0, 0, "0"]] * 5, [[0, 0, True]] * 5, [0] * 5]
)
def test_what_is_no_table_of_colours_is_refused(rows: Any, tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text(json.dumps({"rows": rows}))
    with pytest.raises(CheckpointError, match="expected 5 rows of three numbers"):
        latent_rgb(tmp_path, 4)


def test_the_bundled_model_s_tell_most_of_what_a_picture_looks_like() -> None:
    model = open_model(BUNDLED)
    rows = latent_rgb(BUNDLED, model.latent.channels)
    assert rows is not None
    picture = torch.from_numpy(np.asarray(Image.open(PICTURE).convert("RGB").resize((128, 128))).copy())
    pixels = picture.permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.inference_mode():
        latents = model.part("vae", "fp32").encode(pixels).latent_dist.mean * model.latent_scale
    seen = latents.movedim(1, -1) @ torch.tensor(rows[:-1]) + torch.tensor(rows[-1])
    wanted = torch.nn.functional.avg_pool2d(pixels, model.latent.factor).movedim(1, -1)
    unexplained = (seen - wanted).square().sum() / (wanted - wanted.mean((0, 1, 2))).square().sum()
    assert unexplained < 0.5
