"""`run.py calibrate-cache`: ratios that belong to a checkpoint's weights, and are found again."""

from pathlib import Path

import pytest
from PIL import Image

from i2v_tensorrt.cli import calibrate_cache
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.acceleration import find_magnitudes

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


def test_the_ratios_of_a_checkpoint_are_found_by_its_weights(
    tiny_folder: Path, tiny_svd_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "teal.png"
    Image.new("RGB", (70, 50), "teal").save(picture)
    store = EngineStore(tmp_path / "models" / "i2v_engines")
    model, other = open_model(tiny_folder), open_model(tiny_svd_folder)
    assert find_magnitudes(model, store) is None
    where = ["--picture", str(picture), "--store", str(store.root), "--backend", "eager"]
    settings = ["--size", "64x64x3", "--steps", "4", "--prompt", "a boat", "--prompt", "a cat"]
    assert calibrate_cache.main([str(tiny_folder), *where, *settings]) == 0
    found = find_magnitudes(model, store)
    assert found is not None and len(found.ratios) == 4 and found.ratios[0] == 1 and found.clips == 2
    assert (found.scheduler, found.spacing) == ("ddim", "leading") and find_magnitudes(other, store) is None
    assert "4 ratios from" in capsys.readouterr().out
    assert calibrate_cache.main([str(tmp_path), *where]) == 1
    assert "run.py calibrate-cache: " in capsys.readouterr().err
