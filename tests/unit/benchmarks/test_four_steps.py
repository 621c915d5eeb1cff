"""Four steps of Wan 2.2 A14B from picture to file, tiny and in eager PyTorch."""

import json
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks.four_steps import main


@pytest.mark.slow
def test_a_row_of_clips_and_one_of_a_new_process(tmp_path: Path) -> None:
    places = ["--checkpoints", str(tmp_path / "models"), "--store", str(tmp_path / "store"), "--out", str(tmp_path)]
    assert main(["--tiny", "--backend", "eager", "--precisions", "bf16", "--rounds", "2", *places]) == 0
    rows = json.loads((tmp_path / "four-steps.json").read_text("utf-8"))["rows"]
    assert list(rows) == ["bf16", "bf16, loaded by a new process"]
    clips = rows["bf16"]["clips"]
    assert [list(clip) for clip in clips] == [["encode_s", "denoise_s", "decode_s", "write_s"]] * 2
    assert rows["bf16"]["seconds"] == pytest.approx(sum(sum(clip.values()) for clip in clips) / 2)
    assert rows["bf16, loaded by a new process"]["load_s"] > 0
    assert not (tmp_path / "figures.json").exists(), "a tiny model has no published size"
