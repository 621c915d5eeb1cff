"""int8 and fp8 for a model's denoisers: what is recorded, which engines are asked for, and what is refused and why."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.cli.engine_command import main
from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError, InputError, MissingEngineError
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime import prebuild as prebuilding
from i2v_tensorrt.runtime.calibration import (
    MOST_CALLS,
    MOST_CLIPS,
    STEPS,
    CalibrationData,
    calibration_of,
    read_calibration_data,
    record,
)
from i2v_tensorrt.runtime.clip_sizes import clip_sizes
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.prebuild import Prebuild, prebuild

from ...helpers.stages import quiet
from ...helpers.toys import CPU, InProcess, let_onnxruntime_be_calibrated

SIZE = ClipSize(64, 64, 4)
RED, BLUE = (Image.new("RGB", (80, 64), name) for name in ("red", "blue"))
QUANTIZED = EnginePolicy("auto", "int8", "exact", "build")


@pytest.fixture
def engines(tiny_folder: Path, tmp_path: Path) -> EngineSet:
    return EngineSet(open_model(tiny_folder), EngineStore(tmp_path / "engines"), QUANTIZED, CPU)


# What is recorded.


def test_every_step_of_clips_of_each_picture_is_recorded_unless_that_is_interrupted(
    engines: EngineSet, tmp_path: Path
) -> None:
    def interrupt(done: int, count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(engines, CalibrationData((RED,)), SIZE, tmp_path, interrupt)
    calibration_data = CalibrationData((RED, BLUE), ("pan left",))
    record(engines, calibration_data, SIZE, tmp_path, quiet)
    calls = calibration_of("core", calibration_data, SIZE, tmp_path).calls()
    spec = engines.model.components["core"].spec
    assert len(calls) == min(2 * STEPS, MOST_CALLS)
    assert all(spec.sizes_of(call.inputs).items() <= clip_sizes(engines.model, *SIZE).items() for call in calls)
    assert all({tensor.name for tensor in spec.outputs} == set(call.outputs) for call in calls)
    name = next(tensor.name for tensor in spec.inputs if tensor.is_timestep)
    timesteps = [float(call.inputs[name].flatten()[0]) for call in calls[:STEPS]]
    assert timesteps == sorted(timesteps, reverse=True)
    assert timesteps[0] > 800 and timesteps[-1] < 200
    assert not torch.equal(calls[0].inputs["context"], calls[STEPS].inputs["context"]), "another picture"


def test_the_name_says_what_was_recorded_and_each_picture_and_prompt_is_used_once_at_least() -> None:
    one = CalibrationData((RED,))
    others = [CalibrationData((BLUE,)), CalibrationData((RED,), ("zoom in",)), CalibrationData((RED, BLUE))]
    names = {each.name(SIZE) for each in (one, *others)} | {one.name(ClipSize(64, 64, 8))}
    assert len(names) == len(others) + 2
    assert CalibrationData((RED.copy(),)).name(SIZE) in names
    assert CalibrationData((RED,), ("a", "b")).clips == [(RED, "a"), (RED, "b")]
    assert CalibrationData((RED, BLUE), ("a",)).clips == [(RED, "a"), (BLUE, "a")]
    assert len(CalibrationData((RED,), tuple("abcdefgh")).clips) == MOST_CLIPS


def test_pictures_come_from_files_and_folders_and_nothing_else_is_one(tmp_path: Path) -> None:
    folder, one, text = tmp_path / "folder", tmp_path / "one.png", tmp_path / "text.png"
    folder.mkdir()
    for path, picture in ((folder / "b.png", BLUE), (folder / "a.jpg", RED), (one, RED.convert("RGBA"))):
        picture.save(path)
    for path in (folder / "notes.txt", text):
        path.write_text("no picture")
    found = read_calibration_data([folder, one], [])
    assert [each.mode for each in found.pictures] == ["RGB"] * 3
    assert found.pictures[1].getpixel((0, 0)) == (0, 0, 255)
    assert found.prompts == ("",)
    for path in (text, tmp_path / "missing.png"):
        with pytest.raises(InputError, match="Expected a picture in"):
            read_calibration_data([path], [])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="Expected pictures .* found none"):
        read_calibration_data([tmp_path / "empty"], [])
    with pytest.raises(InputError, match="at least one picture"):
        CalibrationData(())


# Which engines are asked for.


def test_a_core_without_such_an_engine_runs_eager_and_says_what_to_do_or_stops(engines: EngineSet) -> None:
    def others(**changes: str) -> EngineSet:
        return EngineSet(engines.model, engines.store, replace(QUANTIZED, **changes), CPU)

    assert engines.catalog.precision_of("core") == "int8"
    assert engines.catalog.precision_of("vae_decoder") == engines.precision == "fp32", "the cores alone are quantized"
    assert others(precision="bf16").catalog.precision_of("core") == "bf16"
    sizes = clip_sizes(engines.model, *SIZE)
    assert engines.runner("core", sizes).backend == "eager"
    (note,) = engines.take_notes()
    assert "There is no int8 engine for core, and its scales are taken from pictures" in note
    assert "--calibrate" in note
    with pytest.raises(MissingEngineError, match="no engine for core"):
        others(on_missing="stop").runner("core", sizes)


def test_an_engine_is_found_whatever_its_scales_were_taken_from(
    engines: EngineSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime stands in for TensorRT, which cannot run here; it computes what it is given in fp32."""

    let_onnxruntime_be_calibrated(monkeypatch)
    sizes = clip_sizes(engines.model, *SIZE)
    record(engines, CalibrationData((RED,)), SIZE, tmp_path, quiet)
    calibration = calibration_of("core", CalibrationData((RED,)), SIZE, tmp_path)
    plan = engines.build("core", sizes, InProcess(), calibration=calibration).plan
    assert plan.manifest.spec.calibration == calibration.name
    assert plan.manifest.verdict is not None
    assert plan.manifest.verdict.snr_db > 70, "compared with what was recorded in fp32"
    assert engines.runner("core", sizes).backend == "onnxruntime"
    other = replace(calibration, name=CalibrationData((BLUE,)).name(SIZE))
    engines.build("core", sizes, InProcess(), calibration=other)
    assert len(engines.catalog.stored("core")) == 2


@pytest.mark.slow
def test_nothing_is_recorded_for_an_engine_that_is_there(engines: EngineSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is ModelOpt needed then."""
    let_onnxruntime_be_calibrated(monkeypatch)
    monkeypatch.setattr(prebuilding, "BuildProcess", InProcess)
    monkeypatch.setattr(prebuilding, "cuda_arch", lambda device: "sm_89")
    monkeypatch.setattr(prebuilding, "check_quantizable", lambda precision, arch: None)
    job = Prebuild(("core",), *SIZE, calibration_data=CalibrationData((RED,)))

    def refuse_to_record(stage: str, done: float) -> None:
        assert stage != "record clips"

    assert "built in" in prebuild(engines, job, quiet)[0]
    assert "already there" in prebuild(engines, job, refuse_to_record)[0]
    for other in (replace(job, force=True), replace(job, calibration_data=CalibrationData((BLUE,)))):
        with pytest.raises(AssertionError, match="record clips"):
            prebuild(engines, other, refuse_to_record)


def test_a_backend_without_them_is_refused_before_anything_is_recorded(
    engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an H100 with TensorRT-RTX, where `auto` takes another backend."""
    monkeypatch.setattr(prebuilding, "cuda_arch", lambda device: "sm_90")
    heard: set[str] = set()
    job = Prebuild(("core",), *SIZE, calibration_data=CalibrationData((RED,)))
    with pytest.raises(EngineError, match="int8 and fp8 are for TensorRT, found the backend "):
        prebuild(engines, job, lambda stage, done: heard.add(stage))
    assert heard == set()


# What is refused, before anything is recorded.


@pytest.mark.parametrize(
    ("precision", "arch", "calibration_data", "kind", "told"),
    [
        ("int8", "sm_89", None, InputError, "int8 takes its scales from pictures, found none"),
        ("fp16", "sm_89", CalibrationData((RED,)), InputError, "for int8 and fp8, found fp16"),
        ("fp8", "sm_86", CalibrationData((RED,)), EngineError, "fp8 needs a GPU of sm_89 or newer, found sm_86"),
        ("int8", None, CalibrationData((RED,)), BackendUnavailableError, "TensorRT on NVIDIA GPUs, found none"),
    ],
)
def test_refusals(
    engines: EngineSet,
    precision: str,
    arch: str | None,
    calibration_data: CalibrationData | None,
    kind: type[Exception],
    told: str,
) -> None:
    asked = EngineSet(engines.model, engines.store, replace(QUANTIZED, precision=precision), CPU)
    job = Prebuild(("core",), *SIZE, arch=arch, calibration_data=calibration_data)
    with pytest.raises(kind, match=told):
        prebuild(asked, job, quiet)
    assert not list(engines.store.plans())


def test_a_missing_modelopt_is_told_on_the_command_line(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    RED.save(tmp_path / "red.png")
    assert main(command(tiny_folder, tmp_path)) == 1
    assert 'pip install "nvidia-modelopt[onnx]"' in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_builds_a_plan_from_a_picture(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("modelopt.onnx.quantization", reason="NVIDIA's ModelOpt is not installed")
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    RED.save(tmp_path / "red.png")
    assert main(command(tiny_folder, tmp_path)) == 0
    assert "core: built in" in capsys.readouterr().out
    (plan,) = EngineStore(tmp_path / "store").plans()
    assert (plan.manifest.spec.precision, plan.manifest.target.arch) == ("int8", "sm_89")


def command(checkpoint: Path, folder: Path) -> list[str]:
    size = ("--shapes", "exact", "--width", "64", "--height", "64", "--frames", "4")
    how = ("--component", "core", "--precision", "int8", "--target", "sm_89")
    pictures = ("--calibrate", str(folder / "red.png"), "--prompt", "pan left")
    return ["--store", str(folder / "store"), "build", str(checkpoint), *size, *how, *pictures]
