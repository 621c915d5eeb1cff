"""Rows keep what is measured, whatever becomes of the process, and nothing that nobody knows."""

import json
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks.ladder.row import FIGURES, MEASURED, MISSING, Row, RowFile, read_row, row_from_dict
from i2v_tensorrt.common.errors import InputError


def test_what_was_added_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.json"
    file = RowFile(path, Row("a", "A"))
    file.add({"step_ms": 1.25, "kernels_per_step": None}, "a note", "a note")
    file.add({"step_ms": 1.5}, "a note", "another")
    assert read_row(path) == Row("a", "A", MISSING, "", {"step_ms": 1.5}, ("a note", "another"))
    file.close(MEASURED)
    assert read_row(path) == Row("a", "A", MEASURED, "", {"step_ms": 1.5}, ("a note", "another"))


@pytest.mark.parametrize("text", [None, "", "[1, 2", "{}", json.dumps({"name": "a", "title": "A", "state": "odd"})])
def test_a_file_that_is_none_gives_no_row(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text, "utf-8")
    assert read_row(tmp_path / "a.json") is None


@pytest.mark.parametrize("change", [{"figures": {"speed": 1.0}}, {"state": "odd"}, {"colour": "red"}])
def test_unknown_content_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        row_from_dict({"name": "a", "title": "A", **change})


def test_figures_keep_their_digits_and_say_what_they_mean() -> None:
    assert Row("a", "A").adding({"frames_max_abs": 2.861e-9}).figures["frames_max_abs"] == 2.861e-9
    row = Row("a", "A", figures={"gpu_resident_encode_gib": 2.0, "gpu_resident_decode_gib": 6.5})
    assert (row.peak_gib("resident"), row.peak_gib("offloaded")) == (6.5, None), "the worst stage"
    assert all(len(meaning) > 6 for meaning in FIGURES.values())
