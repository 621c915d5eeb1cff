"""The judge: what it makes once and goes on from, what it finds wrong, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i2v_tensorrt.benchmarks.evaluation import command, progress, run
from i2v_tensorrt.benchmarks.evaluation.clips import (
    MOTIONS,
    JudgedClip,
    bundled_clips,
    motion_of,
    moves_right,
    picture_clips,
)
from i2v_tensorrt.benchmarks.evaluation.learned import ClipScore, check_samples, missing
from i2v_tensorrt.benchmarks.evaluation.measure import LINES, figures_of, keeps, summary
from i2v_tensorrt.benchmarks.evaluation.progress import Progress
from i2v_tensorrt.benchmarks.evaluation.report import save_frontier, verdicts
from i2v_tensorrt.benchmarks.figures import FEWER, write_figures
from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.demo_model.training.evaluate import truth
from i2v_tensorrt.pipeline.denoising.sampler import OnStep
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime.tools import benchmark

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


@pytest.fixture(scope="module")
def clips() -> list[JudgedClip]:
    return bundled_clips(1)


def drawn(clip: JudgedClip) -> torch.Tensor:
    """The clip as it was drawn, which no model has made."""
    assert clip.known is not None
    return truth(clip.known)[0].movedim(1, -1)


def test_clips_are_one_of_each_motion_with_pictures_of_their_own(clips: list[JudgedClip]) -> None:
    assert len(clips) == len(MOTIONS) and len({clip.name for clip in bundled_clips(2)}) == 2 * len(MOTIONS)
    for clip, motion in zip(clips, MOTIONS, strict=True):
        assert motion.split()[0] in clip.request.prompt and clip.request.picture.size == (128, 128)
    with pytest.raises(InputError, match="1 to 16"):
        bundled_clips(17)


def test_the_drawn_clips_move_right_and_reversed_ones_do_not(clips: list[JudgedClip]) -> None:
    for clip in clips:
        assert clip.known is not None
        assert moves_right(drawn(clip), clip.known), clip.name
        assert not moves_right(drawn(clip)[:1].expand(16, -1, -1, -1), clip.known), clip.name
    view = clips[0]
    assert view.known is not None and not moves_right(drawn(view).flip(0), view.known)


def test_figures_tell_a_clip_from_one_with_its_frames_mixed_up(clips: list[JudgedClip]) -> None:
    frames = drawn(clips[0])
    same, mixed = figures_of(frames, clips[0], frames), figures_of(frames[torch.randperm(16)], clips[0], frames)
    assert same["psnr_db"] == 200 and same["ssim"] == pytest.approx(1) and same["right"]
    assert mixed["psnr_db"] < 30 and mixed["ssim"] < 0.98 and mixed["flicker"] < same["flicker"]
    assert motion_of(frames).speed > motion_of(frames[:1].expand(16, -1, -1, -1)).speed + 0.2


def row(psnr_db: float, right: bool = True, speed: float = 1.0) -> dict[str, Any]:
    steady = {"flicker": 0.99, "warping_error": 0.001}
    return {"psnr_db": psnr_db, "ssim": 0.9, "right": right, "speed": speed, "sample_s": 2.0, "decode_s": 1.0, **steady}


def test_a_summary_counts_what_the_exact_clips_have_right() -> None:
    exact = {"a": row(99), "b": row(99), "c": row(99, right=False)}
    found = summary({"a": row(40, speed=1.5), "b": row(30, right=False), "c": row(35, right=False)}, exact)
    assert found["clips"] == 3 and found["psnr_db"] == 35 and found["worst_psnr_db"] == 30 and found["seconds"] == 3
    assert found["still_right_percent"] == 50 and found["speed_off"] == pytest.approx(0.5 / 3)
    assert summary({"a": row(40)}, {"b": row(99)})["clips"] == 0


def test_each_part_of_a_line_is_held() -> None:
    good = {"psnr_db": 40.0, "worst_psnr_db": 35.0, "ssim": 0.99, "still_right_percent": 100.0}
    for name, line in LINES.items():
        assert keeps(line, good) == []
        for part in good:
            least = getattr(line, part)
            if least is not None:
                assert part in keeps(line, {**good, part: least - 0.1})[0], (name, part)
    assert verdicts({"near": {**good, "psnr_db": 33.9}})[0].startswith("near: psnr_db is 33.90, expected at least 34")


def arguments(folder: Path, picture: Path, *more: str) -> list[str]:
    sizes = ["--size", "64x64x3", "--steps", "24", "--lossless", "1", "--backend", "eager"]
    where = ["--model", str(folder), "--picture", str(picture), "--out", str(picture.parent / "out")]
    return [*where, *sizes, "--store", str(picture.parent / "engines"), "--presets", "near,real time", *more]


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (70, 50), "teal").save(tmp_path / "teal.png")
    return tmp_path / "teal.png"


@pytest.mark.slow
def test_it_goes_on_where_it_was_stopped(
    tiny_folder: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []
    make = run.Evaluation._make

    def watched(self: run.Evaluation, clip: JudgedClip, variant: str, on_step: OnStep) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(variant)
        make(self, clip, variant, on_step)

    monkeypatch.setattr(run, "other_backend", lambda engines: "eager", raising=True)
    monkeypatch.setattr(command, "other_backend", lambda engines: "eager")
    monkeypatch.setattr(run.Evaluation, "_make", watched)
    with pytest.raises(KeyboardInterrupt):
        command.main(arguments(tiny_folder, picture))
    made.clear()
    assert command.main(arguments(tiny_folder, picture)) in (0, 1)
    assert made == ["near", "real time"]  # the exact clip and the other build were there
    told, out = capsys.readouterr().out, picture.parent / "out"
    assert "3 of 4: near, " in told and " left ..." in told and "FVD needs at least 400 samples, found 1" in told
    found = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert found["summary"]["another build"]["psnr_db"] == 200 and found["summary"]["near"]["psnr_db"] < 100
    assert {path.name for path in out.glob("*.png")} == {"frontier.png", "worst-near.png", "worst-real-time.png"}
    assert command.main(arguments(tiny_folder, picture)) in (0, 1) and len(made) == 2


def test_progress_tells_steps_and_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, told = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    watched = Progress(told.append, 100 + 20 + 20, limit_s=130)
    assert watched.has_time(1000), "nothing is known of the pace yet"
    watched.begin("1 of 3: exact", 100)
    for step in range(1, 51):
        clock[0] += 2
        watched.step(step, 50)
    watched.end()
    # Two calls a step of two seconds, a second each; a line at every eighth step, after fifteen seconds or more.
    assert told[:3] == ["1 of 3: exact ...", "step 8 of 50, about 2 min left", "step 16 of 50, about 2 min left"]
    assert told[-1] == "step 48 of 50, about 44 s left" and len(told) == 1 + 6
    assert watched.has_time(20) and not watched.has_time(31)
    watched.begin("2 of 3: near", 20)
    assert told[-1] == "2 of 3: near, about 40 s left ..."
    clock[0] = 131
    assert not watched.has_time(0)


def test_a_cpu_is_judged_eager_unless_a_backend_is_named() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert command.judged_backend("auto", cpu) == "eager" and command.judged_backend("auto", gpu) == "auto"
    assert command.judged_backend("onnxruntime", cpu) == "onnxruntime"


def test_no_time_is_no_result(tiny_folder: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(arguments(tiny_folder, picture, "--minutes", "-1", "--lossless", "0")) == 1
    assert "give more minutes" in capsys.readouterr().err


def test_another_model_needs_pictures(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--model", str(tiny_folder), "--out", str(tmp_path)]) == 1
    assert "name some by --picture" in capsys.readouterr().err
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read"):
        picture_clips([tmp_path / "no.png"], ["a"], 1, ClipSize(64, 64, 4), 8)


def test_few_samples_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    for metric, least in (("FID", 2048), ("FVD", 400)):
        with pytest.raises(InputError, match=f"{metric} needs at least {least} samples, found {least - 1}"):
            check_samples(metric, least - 1)
        check_samples(metric, least)
    told = " ".join(missing(None, 4, 64))
    assert "CLIPScore was not taken" in told and "VBench was not taken" in told and "LPIPS was not taken" in told
    with pytest.raises(InputError, match="Expected a CLIP model"):
        ClipScore(tmp_path)


def test_flat_figures_are_filled_by_several(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    write_figures(path, {"exact_s": 4.87654, "unknown": 1.0})
    write_figures(path, {"near_psnr_db": 36.5})
    found = json.loads(path.read_text("utf-8"))
    assert list(found) == list(FEWER) and (found["exact_s"], found["near_psnr_db"]) == (4.877, 36.5)
    assert found["svd_near_s"] is None


def test_the_plot_is_drawn_without_seconds_too(tmp_path: Path) -> None:
    rows = {"exact": {"calls": 100.0}, "near": {"calls": 35.0, "psnr_db": 40.0}}
    save_frontier("Presets", rows, tmp_path / "calls.png")
    save_frontier("Presets", {name: {**row, "seconds": 2.0} for name, row in rows.items()}, tmp_path / "seconds.png")
    with Image.open(tmp_path / "calls.png") as one, Image.open(tmp_path / "seconds.png") as other:
        assert one.size == other.size and one.tobytes() != other.tobytes()


def test_the_node_orders_the_judge(tmp_path: Path) -> None:
    order = benchmark.BenchmarkOrder(tmp_path, benchmark.PRESETS, 64, 64, 4, 4, 5)
    options = command.parser().parse_args(benchmark._judge(order, tmp_path)[len(benchmark.JUDGE) :])
    assert (options.size, options.steps, options.minutes) == ("64x64x4", benchmark.LEAST_JUDGED_STEPS, 5)
    long = benchmark._judge(replace(order, steps=40), tmp_path)
    assert command.parser().parse_args(long[len(benchmark.JUDGE) :]).steps == 40
