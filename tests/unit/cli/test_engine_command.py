"""`run.py engine`: what it prints, and what it leaves in the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.cli.engine_command import main, parser
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.tests.helpers.loras import KOHYA, layers, write_lora

BUILD = ("--component", "image_encoder", "--width", "64", "--height", "64", "--frames", "4")


Engine = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def built(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one engine, built by the command."""
    store = tmp_path_factory.mktemp("engines")
    assert main(["--store", str(store), "build", str(tiny_folder), *BUILD]) == 0
    return store


@pytest.fixture
def engine(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Engine:
    """The command's status and what it says; MODEL stands for the tiny checkpoint."""

    def run(*arguments: str, store: Path = tmp_path) -> tuple[int, str, str]:
        given = [str(tiny_folder) if argument == "MODEL" else argument for argument in arguments]
        status = main(["--store", str(store), *given])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_what_was_built_is_listed_and_found_again(built: Path, engine: Engine) -> None:
    status, out, _ = engine("--json", "list", store=built)
    (row,) = json.loads(out)
    assert (status, row["component"], row["backend"], row["precision"]) == (0, "image_encoder", "onnxruntime", "fp32")
    assert row["cosine"] > 0.999999
    assert engine("list", store=built)[1].startswith(next(EngineStore(built).plans()).manifest.key[:12])
    status, out, _ = engine("build", "MODEL", *BUILD, store=built)
    assert status == 0 and "already there" in out


@pytest.mark.parametrize("command", ["list", "verify"])
def test_an_empty_store_is_told_as_one(engine: Engine, tmp_path: Path, command: str) -> None:
    assert engine(command)[:2] == (0, f"There are no engines in {tmp_path}.\n")
    assert json.loads(engine("--json", command)[1]) == []


def test_presets_are_one_engine_that_lists_each(engine: Engine, tmp_path: Path) -> None:
    """Through ONNX Runtime, which has no profiles: one graph, compared with eager PyTorch at every preset."""
    assert engine("build", "MODEL", "--component", "vae_encoder", "--presets", "64x64x4,128x64x4")[0] == 0
    (row,) = json.loads(engine("--json", "list")[1])
    heights, widths = ([each[name] for each in row["presets"]] for name in ("latent_height", "latent_width"))
    assert (heights, widths) == ([[8, 8, 8], [8, 8, 8]], [[8, 8, 8], [16, 16, 16]])
    assert row["profile"]["latent_width"] == [8, 8, 16]
    assert row["text"].endswith("latent_height 8, latent_width 8 or latent_height 8, latent_width 16")
    (plan,) = EngineStore(tmp_path).plans()
    assert plan.manifest.verdict is not None
    assert [shape["latent_width"] for shape in plan.manifest.verdict.shapes] == [8, 16]


@pytest.mark.slow
def test_an_engine_with_a_lora_is_another_one_and_found_again(
    built: Path, engine: Engine, tiny_folder: Path, tmp_path: Path
) -> None:
    """The image encoder has no part in it, the denoiser has."""
    file = tmp_path / "style.safetensors"
    write_lora(file, layers(open_model(tiny_folder).checkpoint.parts["unet"]), KOHYA)
    lora = ("--lora", str(file), "0.5")
    assert "already there" in engine("build", "MODEL", *BUILD, *lora, store=built)[1]
    denoiser = ("--component", "core", *BUILD[2:], "--shapes", "exact")
    for arguments, expected in ((lora, False), (lora, True), (("--lora", str(file), "0.75"), False)):
        status, out, _ = engine("build", "MODEL", *denoiser, *arguments)
        assert (status, "already there" in out) == (0, expected)


def test_verify_tells_a_whole_engine_from_a_damaged_one_and_prune_removes_what_is_named(
    engine: Engine, tmp_path: Path
) -> None:
    for command in (("build", "MODEL", *BUILD), ("verify",)):
        assert engine(*command)[0] == 0
    plan = next(EngineStore(tmp_path).plans())
    largest = max(plan.manifest.files, key=lambda name: plan.manifest.files[name].size_bytes)
    content = bytearray((plan.folder / largest).read_bytes())
    content[len(content) // 2] ^= 1
    (plan.folder / largest).write_bytes(content)
    status, out, _ = engine("--json", "verify", plan.manifest.key[:8])
    (row,) = json.loads(out)
    assert (status, row["ok"]) == (1, False)
    assert "damaged" in row["text"]
    assert engine("prune")[0] == 0
    assert [each.manifest.key for each in EngineStore(tmp_path).plans()] == [plan.manifest.key], "none is named"
    assert engine("prune", plan.manifest.key[:12])[0] == 0
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
def test_what_cannot_be_done_is_one_sentence(engine: Engine, arguments: tuple[str, ...], sentence: str) -> None:
    status, _, error = engine(*arguments)
    assert status == 1
    assert error.startswith("run.py engine: ") and sentence in error
    assert "Traceback" not in error


def test_the_doctor_names_what_auto_takes(engine: Engine) -> None:
    status, out, _ = engine("--json", "doctor")
    rows = json.loads(out)
    assert status == 0
    assert {row["backend"] for row in rows if "backend" in row} == {"tensorrt", "inductor", "onnxruntime", "eager"}
    assert sum("auto takes this" in row["text"] for row in rows) == 1


@pytest.mark.parametrize("command", ["list", "doctor", "verify", "prune"])
def test_what_all_commands_have_is_taken_before_and_behind_them(command: str, tmp_path: Path) -> None:
    given = ["--json", "--store", str(tmp_path)]
    for arguments in ([*given, command], [command, *given], [*given[:1], command, *given[1:]]):
        options = parser().parse_args(arguments)
        assert (options.json, options.store) == (True, tmp_path)
    assert parser().parse_args([command]).json is False
