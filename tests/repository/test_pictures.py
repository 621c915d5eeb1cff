"""The bundled picture is what its generator paints."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

PICTURES = Path(__file__).resolve().parents[2] / "workflows" / "pictures"


@pytest.mark.slow
def test_lake_is_what_its_generator_paints(tmp_path: Path) -> None:
    runpy.run_path(str(PICTURES / "make_pictures.py"))["main"](tmp_path)
    bundled = PICTURES / "lake.png"
    with Image.open(bundled) as kept, Image.open(tmp_path / "lake.png") as painted:
        assert (kept.size, kept.mode) == ((512, 512), "RGB")
        difference = np.abs(np.asarray(kept, dtype=float) - np.asarray(painted, dtype=float))
    # Another libm may move a reflected edge by a pixel here and there.
    assert difference.mean() < 0.05
    assert bundled.stat().st_size < 400_000
