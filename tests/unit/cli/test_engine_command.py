"""`run.py engine`: what it prints, and what it leaves in the store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.engine_command import main
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.tests.helpers.loras import KOHYA, layers, write_lora

BUILD = ("--component", "image_encoder", "--width", "64", "--height", "64", "--frames", "4")


@pytest.fixture(scope="module")
def built(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one engine, built by the command."""
    store = tmp_path_factory.mktemp("engines")
    assert main(["--store", str(store), "build", str(tiny_folder), *BUILD]) == 0
    return store


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    capsys.readouterr()
    status = main(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


def test_what_was_built_is_listed_and_found_again(
    built: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, (row,) = answer(capsys, "--store", str(built), "list")
    assert status == 0
    assert (row["component"], row["backend"], row["precision"]) == ("image_encoder", "onnxruntime", "fp32")
    assert row["cosine"] > 0.999999
    assert main(["--store", str(built), "list"]) == 0
    assert capsys.readouterr().out.startswith(next(EngineStore(built).plans()).manifest.key[:12])
    assert main(["--store", str(built), "build", str(tiny_folder), *BUILD]) == 0
    assert "already there" in capsys.readouterr().out


def test_presets_are_one_engine_that_lists_each(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through ONNX Runtime, which has no profiles: one graph, compared with eager PyTorch at every preset."""
    presets = ("--component", "vae_encoder", "--presets", "64x64x4,128x64x4")
    assert main(["--store", str(tmp_path), "build", str(tiny_folder), *presets]) == 0
    _, (row,) = answer(capsys, "--store", str(tmp_path), "list")
    heights, widths = ([each[name] for each in row["presets"]] for name in ("latent_height", "latent_width"))
    assert (heights, widths) == ([[8, 8, 8], [8, 8, 8]], [[8, 8, 8], [16, 16, 16]])
    assert row["profile"]["latent_width"] == [8, 8, 16]
    assert row["text"].endswith("latent_height 8, latent_width 8 or latent_height 8, latent_width 16")
    (plan,) = EngineStore(tmp_path).plans()
    assert plan.manifest.verdict is not None
    assert [shape["latent_width"] for shape in plan.manifest.verdict.shapes] == [8, 16]


@pytest.mark.slow
def test_an_engine_with_a_lora_is_another_one_and_found_again(
    built: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The image encoder has no part in it, the denoiser has."""
    file = tmp_path / "style.safetensors"
    write_lora(file, layers(open_model(tiny_folder).checkpoint.parts["unet"]), KOHYA)
    lora = ("--lora", str(file), "0.5")
    assert main(["--store", str(built), "build", str(tiny_folder), *BUILD, *lora]) == 0
    assert "already there" in capsys.readouterr().out
    denoiser = ("--component", "core", "--width", "64", "--height", "64", "--frames", "4", "--shapes", "exact")
    store = str(tmp_path / "engines")
    for arguments, expected in ((lora, False), (lora, True), (("--lora", str(file), "0.75"), False)):
        assert main(["--store", store, "build", str(tiny_folder), *denoiser, *arguments]) == 0
        assert ("already there" in capsys.readouterr().out) is expected


def test_verify_tells_a_whole_engine_from_a_damaged_one_and_prune_removes_what_is_named(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ("--store", str(tmp_path))
    assert main([*store, "build", str(tiny_folder), *BUILD]) == 0
    assert answer(capsys, *store, "verify")[0] == 0
    plan = next(EngineStore(tmp_path).plans())
    largest = max(plan.manifest.files, key=lambda name: plan.manifest.files[name].size_bytes)
    content = bytearray((plan.folder / largest).read_bytes())
    content[len(content) // 2] ^= 1
    (plan.folder / largest).write_bytes(content)
    status, (row,) = answer(capsys, *store, "verify", plan.manifest.key[:8])
    assert (status, row["ok"]) == (1, False)
    assert "damaged" in row["text"]
    assert main([*store, "prune"]) == 0
    assert [each.manifest.key for each in EngineStore(tmp_path).plans()] == [plan.manifest.key], "none is named"
    assert main([*store, "prune", plan.manifest.key[:12]]) == 0
    assert list(EngineStore(tmp_path).plans()) == []


LORA = ("build", "MODEL", *BUILD, "--lora", "/nowhere/missing.safetensors")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("verify", "ffff"), "begins with ffff"),
        (("build", "/nowhere"), "Expected a model folder at /nowhere"),
        (("build", "MODEL", "--width", "65"), "Width is a multiple of 8, found 65"),
        (("build", "MODEL", "--target", "sm_90"), "sm_75, sm_80"),
        (("build", "MODEL", "--presets", "64x64"), ""),
        (("build", "MODEL", "--presets", "65x64x4"), ""),
        (("build", "MODEL", "--shapes", "presets"), ""),
        ((*LORA, "1"), "found nothing there"),
        ((*LORA, "much"), "found 'much'"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(tiny_folder) if argument == "MODEL" else argument for argument in arguments]
    assert main(["--store", str(tmp_path), *given]) == 1
    error = capsys.readouterr().err
    assert error.startswith("run.py engine: ") and sentence in error
    assert "Traceback" not in error


def test_the_doctor_names_what_auto_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = answer(capsys, "--store", str(tmp_path), "doctor")
    assert status == 0
    assert {row["backend"] for row in rows if "backend" in row} == {"tensorrt", "inductor", "onnxruntime", "eager"}
    assert sum("auto takes this" in row["text"] for row in rows) == 1
