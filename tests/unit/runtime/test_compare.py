"""The table and the pictures that two clips make together."""

from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.runtime.tools.compare import MAX_LABEL, Compared, compare_clips


def compared(difference: float, brightest: float = 0.0, labels: tuple[str, str] = ("eager", "")) -> Compared:
    one = torch.full((2, 16, 16, 3), 0.25)
    other = one.clone()
    other[1] += difference
    return compare_clips(one, other, labels, brightest, lambda *_: None)


def row(found: Compared, name: str) -> tuple[str, str]:
    ((value, where),) = [(cells[1], cells[2]) for cells in found.table.rows if cells[0] == name]
    return value, where


def test_figures_stand_in_the_table() -> None:
    found = compared(0.5)
    assert row(found, "clip") == ("2 frames of 16x16", "")
    assert row(found, "PSNR, worst") == ("6.02 dB", "frame 1")  # 20 log10(1 / 0.5)
    assert row(found, "PSNR") == ("9.03 dB", "")  # half of that error
    assert row(found, "greatest difference") == ("0.5000", "frame 1, at 0, 0")
    assert row(found, "flicker, eager")[0] == "1.0000"
    assert row(found, "flicker, second")[0] == "0.5000"
    assert found.line.startswith("PSNR 9.03 dB, SSIM 0.")


def test_equal_clips_say_so_and_a_tiny_difference_is_not_rounded_away() -> None:
    found = compared(0.0)
    assert row(found, "PSNR")[0] == row(found, "PSNR, worst")[0] == "equal"
    assert row(found, "SSIM, mean")[0] == "1.0000"
    assert found.difference.max() == 0
    assert row(compared(2.0**-20), "greatest difference")[0] == "9.5e-07"


@pytest.mark.parametrize(("brightest", "told"), [(0.0, "0.0100"), (0.5, "0.5000")])
def test_the_heat_map_reaches_from_nothing_to_the_greatest_or_to_what_was_asked(brightest: float, told: str) -> None:
    found = compared(0.01, brightest)
    assert row(found, "heat map")[0] == f"brightest from {told}"
    assert (found.difference.max() > 0.9) == (brightest == 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        *(({"brightest": value}, "a number from 0 to 1") for value in (-0.1, 1.1, float("nan"))),
        ({"labels": ("", "x" * (MAX_LABEL + 1))}, f"at most {MAX_LABEL} characters, found {MAX_LABEL + 1}"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        compared(0.1, **settings)


def test_markdown_keeps_a_cell_a_cell() -> None:
    lines = compared(0.1, labels=("a | b\nc", "")).table.markdown().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert any("flicker, a \\| b c" in line for line in lines)
